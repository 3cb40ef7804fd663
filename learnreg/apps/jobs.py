"""The pairs of ``learnreg batch``, read from a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learnreg.apps.records import FAILED
from learnreg.data.formats import TABLES, Subject, read_pairs, table_rows
from learnreg.errors import InputError, MissingFileError
from learnreg.methods.start import WORDS, StartName, is_start
from learnreg.typing import PathLike
from learnreg.writing import distinct_names


@dataclass(frozen=True)
class Job:
    """One row of the table.

    Args:
        name: Name of the pair and of its folder.
        fixed: Files of the fixed image.
        moving: Files of the moving image.
        initial: Where to begin: the file of a transform, ``com``, ``moments``, ``identity``, or the name of a model.
    """

    name: str
    fixed: Subject
    moving: Subject
    initial: Path | StartName | None = None

    @property
    def files(self) -> list[Path | None]:
        """All files that are read for the pair."""
        return [*self.fixed.files, *self.moving.files, self.initial if isinstance(self.initial, Path) else None]


def read_jobs(table: PathLike) -> list[Job]:
    """Read a table of pairs.

    Args:
        table: A CSV with the columns of :func:`learnreg.data.read_pairs`, and ``name`` and ``initial`` if wanted; or a
            ``dataset.json`` with pairs.

    Raises:
        InputError: It has no pairs, or two pairs have one name.
    """
    pairs = read_pairs(table)
    if not pairs:
        raise InputError(f"{table} has no pairs; give a CSV with the columns fixed,moving.")
    images = [subject.image for pair in pairs for subject in pair]
    files = dict(zip(dict.fromkeys(images), distinct_names(list(dict.fromkeys(images))), strict=True))
    rows: list[dict[str, str]] = [{} for _ in pairs]
    if Path(table).suffix in TABLES:
        rows = table_rows(Path(table).expanduser())
    jobs = []
    for (fixed, moving), row in zip(pairs, rows, strict=True):
        name = (row.get("name") or "").strip() or f"{files[fixed.image]}__{files[moving.image]}"
        initial = _start((row.get("initial") or "").strip(), name, table)
        jobs.append(Job(name.replace("/", "-"), fixed, moving, initial))
    seen: dict[str, int] = {}
    for number, job in enumerate(jobs, start=1):
        if job.name in seen or job.name in ("", FAILED) or job.name.startswith("."):
            same = f"rows {seen[job.name]} and {number} are" if job.name in seen else f"row {number} is"
            raise InputError(f"{table}: {same} named {job.name!r}; give each pair its own name in the column `name`.")
        seen[job.name] = number
    return jobs


def _start(given: str, name: str, table: PathLike) -> Path | StartName | None:
    """Return a word as ``learnreg register`` takes it, or the file of a transform."""
    if not given:
        return None
    if given in WORDS:
        return given
    file = Path(table).expanduser().parent / Path(given).expanduser()
    if file.exists():
        return file
    if is_start(given):
        return given
    raise MissingFileError(
        f"No such file: {file}, the initial transform of {name} in {table}; check the path, or give com, moments, "
        "identity or the name of a model."
    )
