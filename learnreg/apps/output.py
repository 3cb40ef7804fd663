"""Check where results go before anything is computed."""

from __future__ import annotations

import os
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
