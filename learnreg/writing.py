"""Files that are written whole or not at all, and the names of image files."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from learnreg.errors import InputError
from learnreg.headers import READABLE, SUFFIXES
from learnreg.typing import PathLike

PART = ".part-"  # prefix of files and folders that are not complete


def subject_name(path: PathLike) -> str:
    """Return the name of a file without the suffix of its image format; other dots belong to the name.

    Example:
        >>> subject_name("images/RMS.20141210_MCH.nii.gz")
        'RMS.20141210_MCH'
    """
    name = Path(path).name
    known = [suffix for suffix in READABLE if name.lower().endswith(suffix)]
    return name[: -max(map(len, known))] if known and len(name) > max(map(len, known)) else name


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the subject name of each file; equal ones begin with as many of their folders as tell them apart.

    Raises:
        InputError: A file is listed twice, or two differ only in their suffix.

    Example:
        >>> distinct_names([Path("a/t1.nii"), Path("b/t1.nii"), Path("b/t2.nii")])
        ['a_t1', 'b_t1', 't2']
    """
    whole = [path.absolute() for path in paths]
    names = [subject_name(path) for path in paths]
    equal: set[str] = set()
    for depth in range(1, 1 + max((len(path.parts) for path in whole), default=0)):
        equal = {name for name, count in Counter(names).items() if count > 1}
        if not equal:
            break
        names = [
            "_".join([*path.parent.parts[-depth:], subject_name(path)]).replace(path.anchor, "")
            if name in equal
            else name
            for name, path in zip(names, whole, strict=True)
        ]
    if not equal:
        return names
    same = [str(path) for path, name in zip(paths, names, strict=True) if name in equal]
    raise InputError(f"{same[0]} and {same[1]} have one name; rename one of them, and list each image once.")


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder with its parents; if the block raises an error, remove those that were made and are empty."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in missing:
            with suppress(OSError):
                one.rmdir()
        raise


def reserve(path: PathLike, size: int) -> None:
    """Check that the disk has room for a file, for writers that end the process if it has not; the file is emptied.

    Args:
        path: The file.
        size: In bytes.

    Raises:
        OSError: There is no room.
    """
    with Path(path).open("wb") as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(0)


def own_part() -> str:
    """Return how the names of files and folders begin that this process has not completed."""
    return f"{PART}{socket.gethostname()}-{os.getpid()}-"


def remove_parts(folder: PathLike) -> None:
    """Remove what processes of this machine that were killed have left half-written in a folder."""
    begin = f"{PART}{socket.gethostname()}-"
    with suppress(OSError):  # what cannot be removed does no harm
        for part in Path(folder).glob(f"{begin}*"):
            process = part.name.removeprefix(begin).partition("-")[0]
            if not process.isdigit() or _runs(int(process)):
                continue
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


@lru_cache(maxsize=256)
def _remove_parts_once(folder: Path) -> None:
    """Remove them when this process first writes into a folder: listing a large one takes time."""
    remove_parts(folder)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_atomically(path: PathLike, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name of the same suffix, then rename, so that no file is half-written.

    The content is on the disk before the name is, so a power failure leaves the file whole or absent. A process that
    is killed leaves its temporary file, which the next one on this machine that writes into the folder removes.

    Raises:
        InputError: The file cannot be written: the folder is missing or protected, or the disk is full.
    """
    file = Path(path)
    suffix = "".join(file.suffixes[-2:]) if file.name.endswith(".gz") else file.suffix
    part: Path | None = None
    try:
        with made(file.parent):
            try:
                _remove_parts_once(file.parent.absolute())
                handle, name = tempfile.mkstemp(suffix=suffix, prefix=own_part(), dir=file.parent)
                os.close(handle)
                part = Path(name)
                write(name)
                with part.open("rb") as written:
                    os.fsync(written.fileno())
                part.chmod(0o644)
                part.replace(file)
            finally:
                if part is not None:
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}. Choose another output.") from error


@contextmanager
def together(folder: PathLike) -> Iterator[Path]:
    """Collect files in a temporary folder, and move them into ``folder`` when all are written.

    If the block raises an error, none of them appears.

    Args:
        folder: Where the files belong; it is made.

    Raises:
        InputError: The folder cannot be written.
    """
    target = Path(folder)
    part: Path | None = None
    try:
        with made(target):
            try:
                _remove_parts_once(target.absolute())
                part = Path(tempfile.mkdtemp(prefix=own_part(), dir=target))
                yield part
                for file in sorted(file for file in part.rglob("*") if file.is_file()):
                    place_for = target / file.relative_to(part)
                    place_for.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(place_for)
            except InputError as error:
                raise InputError(str(error).replace(str(part), str(target))) from error
            finally:
                if part is not None:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}. Choose another output.") from error


def check_output(path: PathLike, *, overwrite: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a file can be written, before anything is computed.

    Args:
        path: The output.
        overwrite: Whether an existing file may be replaced.
        suffixes: That a writer has.

    Raises:
        InputError: It exists, or no format has its suffix.
    """
    file = Path(path)
    if not file.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{file}: no format has this suffix; give one of {', '.join(suffixes)}.")
    if file.exists() and not overwrite:
        raise InputError(f"{file} exists already; give another name, or --overwrite.")
