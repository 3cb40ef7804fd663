"""``learnreg bids``: a BIDS App that registers each anatomical image of a data set to one reference."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from learnreg import __version__
from learnreg.apps.batch import Settings, register_pairs
from learnreg.apps.output import check_folder
from learnreg.apps.records import flat
from learnreg.data.bids import bids_rows, is_bids
from learnreg.errors import InputError, MissingFileError
from learnreg.methods.api import choose_method
from learnreg.typing import PathLike
from learnreg.writing import PART, subject_name, write_atomically

ENTITY = re.compile(r"_(?=[A-Za-z0-9]+$)")  # before the suffix, such as T1w


def run(
    source: Path,
    output: Path,
    *,
    to: PathLike | None,
    labels: Sequence[str] = (),
    space: str | None = None,
    settings: Settings,
    jobs: int = 1,
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Register the images of the participants; exit with status 1 if some failed.

    Args:
        source: The data set.
        output: Folder of the derivatives.
        to: The reference.
        labels: Participants; none are all.
        space: Name of the reference; ``None`` is that of its file.
        settings: How to register; the results go through ``work_of(output)``.
        jobs: Processes.
        threads: Threads of the CPU.
        quiet: No progress bar and no summary.
    """
    _check(source)
    check_folder(output)
    if to is None or not Path(to).exists():
        raise MissingFileError(f"No such reference: {to}; give --to FILE, such as a template.")
    choose_method(  # an error of the method, before anything is written
        settings.method, checkpoint=settings.checkpoint, refine=settings.refine, trust=settings.trust
    )
    images = _images(source, labels)
    space = space or re.sub(r"[^A-Za-z0-9]", "", subject_name(to))
    output.mkdir(parents=True, exist_ok=True)
    _describe(output)
    left = {name: image for name, image in images.items() if not _transform(output, source, image, space).exists()}
    work = settings.output
    table = work.parent / "pairs.csv"
    lines = [(name, str(Path(to).absolute()), str(image.absolute())) for name, image in left.items()]
    write_atomically(table, lambda part: _write(Path(part), ("name", "fixed", "moving"), lines))
    for name in left:  # a kill while a result was moved has left the rest of it
        if (work / name).exists() and not (work / name / "metrics.json").exists():
            shutil.rmtree(work / name)
    failed = False
    if lines:
        rows = register_pairs(table, settings, jobs=jobs, threads=threads, retry=True, quiet=quiet)
        failed = any(row["status"] == "failed" for row in rows)
    for name, image in left.items():
        if (work / name).exists():
            _publish(work / name, _transform(output, source, image, space), space)
    if failed:
        raise SystemExit(1)
    shutil.rmtree(work.parent)


def work_of(output: Path) -> Path:
    """Return the folder of the batch, until all images are done."""
    return output / f"{PART}learnreg" / "out"


def _check(source: Path) -> None:
    if not source.is_dir() or not is_bids(source):
        raise InputError(f"{source} is no BIDS data set: it has no sub-*/ folders with anat/.")


def _images(source: Path, labels: Sequence[str]) -> dict[str, Path]:
    """Return the images by their names, of all participants or of some."""
    wanted = {label.removeprefix("sub-") for label in labels}
    rows = bids_rows(source)
    unknown = wanted - {row["group"].removeprefix("sub-") for row in rows}
    if unknown:
        raise InputError(f"{source} has no images of sub-{sorted(unknown)[0]}.")
    chosen = [row for row in rows if not wanted or row["group"].removeprefix("sub-") in wanted]
    return {subject_name(row["image"]): Path(row["image"]) for row in chosen}


def _transform(output: Path, source: Path, image: Path, space: str) -> Path:
    """Return the transform of an image, by the names of BIDS derivatives."""
    begin, contrast = ENTITY.split(subject_name(image))
    folder = output / image.parent.relative_to(source)
    return folder / f"{begin}_from-{contrast}_to-{space}_mode-image_xfm.h5"


def _publish(done: Path, transform: Path, space: str) -> None:
    """Move the result of a pair to its place; the transform comes last, and tells that the others are there."""
    transform.parent.mkdir(parents=True, exist_ok=True)
    begin, _, rest = transform.name.partition("_from-")
    contrast = rest.partition("_to-")[0]
    (done / "metrics.json").replace(transform.with_suffix(".json"))
    (done / "warped.nii.gz").replace(transform.parent / f"{begin}_space-{space}_{contrast}.nii.gz")
    (done / "transform.h5").replace(transform)


def _describe(output: Path) -> None:
    text = {
        "Name": "learnreg: images registered to a reference",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "learnreg", "Version": __version__}],
    }
    write_atomically(
        output / "dataset_description.json",
        lambda part: Path(part).write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8"),
    )


def collect(source: Path, output: Path) -> None:
    """Write ``group_registration.tsv``, a row per transform."""
    _check(source)
    files = sorted(output.rglob("sub-*_xfm.json"))
    if not files:
        raise InputError(f"{output} holds no results; run the level `participant` first.")
    rows = [flat(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    lines = [tuple(row.get(column, "n/a") for column in columns) for row in rows]
    table = output / "group_registration.tsv"
    write_atomically(table, lambda part: _write(Path(part), columns, lines, "\t"))
    print(f"Wrote {table}: {len(rows)} images")


def _write(file: Path, columns: Sequence[str], lines: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=delimiter).writerows([columns, *lines])
