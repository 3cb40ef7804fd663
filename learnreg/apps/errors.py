"""Errors on the command line: one line for bad input, the traceback for everything else."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learnreg.errors import InputError

LOG = "error.log"


@contextmanager
def reporting_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn an :class:`InputError` into one line on stderr and exit status 2.

    An ``InputError`` that Hydra wrapped counts as well. Every other exception is a bug and keeps its traceback.

    Args:
        debug: Keep the traceback of an ``InputError`` too; so does the environment variable ``LEARNREG_DEBUG``.
    """
    try:
        yield
    except Exception as error:
        known = input_error(error)
        if known is None or debug or os.environ.get("LEARNREG_DEBUG"):
            raise
        print(f"error: {one_line(known)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def logging_errors(folder: str | Path) -> Iterator[None]:
    """Write the traceback of any exception to ``error.log`` in ``folder``, and raise it again."""
    try:
        yield
    except Exception:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / LOG).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def input_error(error: BaseException) -> InputError | None:
    """Return the ``InputError`` among an exception and those that it was raised from."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, InputError):
        found = found.__cause__
    return found


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__
