"""The content of the files of an image, as a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from learnreg.errors import InputError

HEADER_ONLY = (".mhd", ".nrrd", ".nhdr")  # can name the file with the values
NAMED = re.compile(rb"^(?:ElementDataFile|data ?file)\s*[:=]\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE)


def content_of(files: Iterable[Path | None]) -> str:
    """Return a hash of the bytes of files, of folders with DICOM series, and of what a header file refers to.

    Names and dates do not count, so a copied file is the same, and a file that was changed in place is not.

    Args:
        files: In an order that matters; ``None`` for a file that a subject lacks.

    Raises:
        InputError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        parts = [] if file is None else parts_of(file)
        digest.update(f"{len(parts)};".encode())
        for part in parts:
            digest.update(_content(part))
    return digest.hexdigest()


def stamp_of(files: Iterable[Path | None]) -> str:
    """Return a hash of the sizes and dates of files: one that differs tells that their content may have changed.

    Args:
        files: See :func:`content_of`.

    Raises:
        InputError: A file does not exist.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            known = [] if file is None else [(s.st_size, s.st_mtime_ns) for s in map(Path.stat, parts_of(file))]
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
        digest.update(repr(known).encode())
    return digest.hexdigest()


def parts_of(file: Path) -> list[Path]:
    """Return the files that hold an image: those of a DICOM folder, or a header and its file of values."""
    try:
        if file.is_dir():
            return sorted(part for part in file.iterdir() if part.is_file())
        if not file.name.lower().endswith(HEADER_ONLY):
            return [file]
        with file.open("rb") as opened:
            named = NAMED.search(opened.read(4096).partition(b"\n\n")[0])
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
    name = named[1].decode(errors="replace") if named else "LOCAL"
    if name.upper() == "LOCAL":
        return [file]
    beside = file.parent / name
    if beside.is_file():
        return [file, beside]
    return [
        file,
        *sorted(part for part in file.parent.iterdir() if part.is_file() and part != file),
    ]  # a list of slices


def samples_of(file: Path, size: int = 2**16) -> bytes:
    """Return a hash of the beginning, the middle and the end of a file: files that differ in it differ.

    Raises:
        InputError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            length = file.stat().st_size
            for place in (0, length // 2, max(0, length - size)):
                opened.seek(place)
                digest.update(opened.read(size))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
    return digest.digest()


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
