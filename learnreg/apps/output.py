"""Check where results go before anything is computed, and collect the warnings that belong to them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from learnreg.errors import InputError


def check_folder(output: Path) -> None:
    """Check that a folder can be made and written to, without making it.

    Raises:
        InputError: It is a file, lies below one, or is protected.
    """
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"-o {output} cannot be made, because {existing} is a file; give a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"-o {output} cannot be written: {existing} is protected; give another folder.")


def check_unused(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Check that results can be written into a folder, without making it.

    Args:
        output: The folder.
        names: Of the results.
        overwrite: Whether those that are there may be replaced.

    Raises:
        InputError: Results are there and may not be replaced; or see :func:`check_folder`.
    """
    check_folder(output)
    existing = [name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise InputError(f"{output} already holds {', '.join(existing)}; give another folder, or --overwrite.")


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Show each warning of learnreg once when the block ends, and collect their messages for ``metrics.json``."""
    noticed: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield noticed
    finally:  # the warnings explain an error, too
        for message, warning in {str(warning.message): warning for warning in caught}.items():
            noticed.append(message)
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
