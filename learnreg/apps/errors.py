"""Errors on the command line: one line for bad input, the traceback for everything else."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from learnreg.errors import InputError, UntrustedClassError

LOG = "error.log"
OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "Failed to allocate memory")
_DEBUG: ContextVar[bool] = ContextVar("_DEBUG", default=False)


def debugging() -> bool:
    """Return whether errors show their traceback: ``--debug``, or the environment variable ``LEARNREG_DEBUG``."""
    return _DEBUG.get() or bool(os.environ.get("LEARNREG_DEBUG"))


@contextmanager
def reporting_errors(*, debug: bool = False, remedy: str = "trust=[{}]") -> Iterator[None]:
    """Turn an :class:`InputError` into one line on stderr and exit status 2.

    An ``InputError`` that Hydra wrapped counts as well. If the reader of the output has gone, as in ``learnreg ... |
    head -1``, the command ends without a message, with exit status 141. Every other exception is a bug and keeps its
    traceback.

    Args:
        debug: Keep the traceback of an ``InputError`` too; so does the environment variable ``LEARNREG_DEBUG``.
        remedy: How this command trusts a package.
    """
    before = _DEBUG.set(debug or _DEBUG.get())
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
            raise SystemExit(128 + signal.SIGPIPE) from None
        known = input_error(error)
        if known is None or debugging():
            raise
        if isinstance(known, UntrustedClassError):
            known = UntrustedClassError(known.problem, known.package, remedy)
        print(f"error: {one_line(known)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        _DEBUG.reset(before)


def _reader_has_gone() -> bool:
    """Return whether the output is a pipe that the program at its other end has closed."""
    polled = select.poll()
    polled.register(sys.stdout.fileno(), 0)
    return any(state & select.POLLERR for _, state in polled.poll(0))


@contextmanager
def logging_errors(folder: str | Path) -> Iterator[None]:
    """Append the traceback of any exception to ``error.log`` in ``folder``, and raise it again.

    The processes of one training share the file: what one of them does wrong must survive what the others report when
    it has gone.
    """
    try:
        yield
    except Exception:
        with suppress(OSError):  # a full disk must not hide the error itself
            Path(folder).mkdir(parents=True, exist_ok=True)
            with (Path(folder) / LOG).open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
        raise


def input_error(error: BaseException) -> InputError | None:
    """Return an ``InputError``, or the one that Hydra has wrapped; ``None`` for any other exception.

    Memory that ran out counts as one: its remedy is the user's.
    """
    found: BaseException | None = error
    while found is not None and type(found).__module__.startswith("hydra."):
        found = found.__cause__
    if isinstance(found, InputError) and found.__cause__ is not None and is_out_of_memory(found.__cause__):
        found = found.__cause__  # a reader takes it for a file that cannot be read
    if found is not None and is_out_of_memory(found):
        return InputError(
            f"Memory ran out ({type(found).__name__}). Crop or resample the images, choose a method with coarser "
            "levels, or use a machine with more memory."
        )
    return found if isinstance(found, InputError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, NumPy or PyTorch says that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in OUT_OF_MEMORY)


@contextmanager
def naming(files: Mapping[str, object], *, otherwise: str = "") -> Iterator[None]:
    """Name the files in an :class:`InputError` of a computation, which knows images only.

    Args:
        files: By what the message calls them, such as ``"the fixed image"``.
        otherwise: Begin of a message that calls none of them.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        if isinstance(error, UntrustedClassError) or any(str(file) in text for file in files.values()):
            raise
        named = text
        for what, file in files.items():
            begin = rf"((?i:{re.escape(what[:1])}){re.escape(what[1:])})\b"  # it may begin a sentence
            place = str(file).replace("\\", r"\\")  # of a replacement
            named = re.sub(begin, rf"\1 {place}", named)
        if named == text:
            named = f"{otherwise or ' and '.join(map(str, files.values()))}: {text}"
        raise InputError(named) from error


def reason_of(error: BaseException) -> str:
    """Return why a case failed, on one line; an error that is not of the input keeps the name of its class."""
    known = input_error(error)
    return one_line(known) if known is not None else f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line; of one from a data loader's worker, without its traceback."""
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
