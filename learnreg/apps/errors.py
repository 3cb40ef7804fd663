"""An error is one plain line and a non-zero exit; the traceback comes with ``--debug``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something that the person at the keyboard can mend."""


@contextmanager
def reporting_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn the errors of bad input into one line on stderr and exit status 2."""
    try:
        yield
    except (
        ValueError,
        FileNotFoundError,
        NotADirectoryError,
        PermissionError,
        ModuleNotFoundError,
        TypeError,
    ) as error:
        if debug or os.environ.get("LEARNREG_DEBUG"):
            raise
        print(f"error: {describe(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def describe(error: BaseException) -> str:
    """The message of an error on one line; of its cause where a library wrapped it."""
    while type(error).__module__.startswith("hydra") and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
