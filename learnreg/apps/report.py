"""``learnreg report``: pages to look at, from the files of finished registrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learnreg.errors import InputError, MissingFileError
from learnreg.image import Image
from learnreg.io import read_image
from learnreg.methods import Registration
from learnreg.reporting.index import read_metrics, write_index
from learnreg.reporting.report import write_report
from learnreg.transforms.files import read_transform
from learnreg.typing import PathLike

REPORT, INDEX, METRICS, TRANSFORM, FAILED = "report.html", "index.html", "metrics.json", "transform.h5", "failed"


def report(outs: Sequence[PathLike], *, index: PathLike | None = None, overwrite: bool = False) -> list[Path]:
    """Write ``report.html`` into each folder of a result, and a page over them if there are several.

    Args:
        outs: Folders that ``learnreg register`` has written, or that of a ``learnreg batch``.
        index: The page over several results; ``None`` is ``index.html`` in the folder of the batch, or in the working
            folder.
        overwrite: Replace files that exist.

    Returns:
        The pages that were written.

    Raises:
        InputError: A folder holds no result, or one of its images has gone; a page exists and may not be replaced.
    """
    given = [Path(out) for out in outs]
    folders = [folder for out in given for folder in results_in(out)]
    several = len(folders) > 1 or any(not (out / METRICS).exists() for out in given)
    page = Path(index) if index is not None else (given[0] if len(given) == 1 else Path()) / INDEX
    pages = [folder / REPORT for folder in folders if folder.is_dir()] + ([page] if several else [])
    existing = [file for file in pages if file.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]} exists already; give --overwrite to replace reports.")
    for folder in folders:
        if folder.is_dir():
            report_one(folder)
    if several:
        write_index(folders, page)
    return pages


def report_one(folder: Path) -> Path:
    """Write ``report.html`` into the folder of one result.

    Raises:
        InputError: It holds no result, or one of its images has gone.
    """
    metrics = read_metrics(folder)
    if not (folder / TRANSFORM).exists():
        raise MissingFileError(f"{folder / TRANSFORM} is missing; register the pair again with the transform saved.")
    fixed, moving = (_image(folder, metrics, key) for key in ("fixed", "moving"))
    transform = read_transform(folder / TRANSFORM, ndim=fixed.ndim)
    result = Registration(transform, fixed, moving, seconds=float(metrics.get("seconds") or 0.0))
    write_report(result, metrics, folder / REPORT)
    return folder / REPORT


def results_in(out: Path) -> list[Path]:
    """Return the folder itself if it holds a result, else the results of the batch that it holds.

    Raises:
        InputError: It holds neither.
    """
    if (out / METRICS).exists():
        return [out]
    found = sorted(file.parent for file in out.glob(f"*/{METRICS}") if not file.parent.name.startswith("."))
    found += sorted((out / FAILED).glob("*.json"))
    if not found:
        raise InputError(f"{out} holds no {METRICS}; give a folder that `learnreg register` or `batch` has written.")
    return found


def _image(folder: Path, metrics: dict[str, Any], key: str) -> Image:
    """Read an image by the path in the metrics, which was relative to the working folder, perhaps of another day."""
    if not metrics.get(key):
        raise InputError(f"{folder / METRICS} does not name the {key} image; register the pair again.")
    named = Path(str(metrics[key]))
    file = next((path for path in (named, folder / named) if path.exists()), None)
    if file is None:
        raise MissingFileError(
            f"No such file: {named}, the {key} image of {folder}; go to the folder in which the pair was registered, "
            f"or write its whole path into {folder / METRICS}."
        )
    return read_image(file)
