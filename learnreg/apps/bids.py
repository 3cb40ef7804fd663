"""``learnreg bids``: a BIDS App that registers each anatomical image of a data set to one reference."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from learnreg import __version__
from learnreg.apps import batch
from learnreg.apps.main import parser
from learnreg.data.bids import bids_rows, is_bids
from learnreg.errors import InputError, MissingFileError
from learnreg.methods.api import choose_method
from learnreg.writing import PART, subject_name, write_atomically

WORK = f"{PART}learnreg"  # folder of `learnreg batch` in the output, until all images are done
SHARED = ("method", "checkpoint", "refine", "trust", "device", "threads", "jobs", "quiet", "debug")  # with `batch`
ENTITY = re.compile(r"_(?=[A-Za-z0-9]+$)")  # before the suffix, such as T1w


def run(options: argparse.Namespace) -> None:
    """Register the images of the participants, or collect their measures; exit with status 1 if some failed."""
    source, output = Path(options.bids), Path(options.output)
    if not source.is_dir() or not is_bids(source):
        raise InputError(f"{source} is no BIDS data set: it has no sub-*/ folders with anat/.")
    if options.level == "group":
        _collect(output)
        return
    if options.to is None or not Path(options.to).exists():
        raise MissingFileError(f"No such reference: {options.to}; give --to FILE, such as a template.")
    choose_method(  # an error of the method, before anything is written
        options.method, checkpoint=options.checkpoint, refine=options.refine, trust=options.trust
    )
    images = _images(source, options.participant_label)
    space = options.space or re.sub(r"[^A-Za-z0-9]", "", subject_name(options.to))
    output.mkdir(parents=True, exist_ok=True)
    _describe(output)
    left = {name: image for name, image in images.items() if not _transform(output, source, image, space).exists()}
    table, work = output / WORK / "pairs.csv", output / WORK / "out"
    lines = [(name, str(Path(options.to).absolute()), str(image.absolute())) for name, image in left.items()]
    write_atomically(table, lambda part: _write(Path(part), ("name", "fixed", "moving"), lines))
    for name in left:  # a kill while a result was moved has left the rest of it
        if (work / name).exists() and not (work / name / "metrics.json").exists():
            shutil.rmtree(work / name)
    failed = bool(lines) and _batch(options, table, work)
    for name, image in left.items():
        if (work / name).exists():
            _publish(work / name, _transform(output, source, image, space), space)
    if failed:
        raise SystemExit(1)
    shutil.rmtree(output / WORK)


def _images(source: Path, labels: Sequence[str]) -> dict[str, Path]:
    """Return the images by their names, of all participants or of some."""
    wanted = {label.removeprefix("sub-") for label in labels}
    rows = bids_rows(source)
    unknown = wanted - {row["group"].removeprefix("sub-") for row in rows}
    if unknown:
        raise InputError(f"{source} has no images of sub-{sorted(unknown)[0]}.")
    chosen = [row for row in rows if not wanted or row["group"].removeprefix("sub-") in wanted]
    return {subject_name(row["image"]): Path(row["image"]) for row in chosen}


def _batch(options: argparse.Namespace, table: Path, work: Path) -> bool:
    """Register the pairs of a table; return whether some failed."""
    chosen = parser().parse_args(
        ["batch", str(table), "-o", str(work), "--save", "transform", "warped", "metrics", "--retry"]
    )
    shared = {name: vars(options)[name] for name in SHARED}
    try:
        batch.run(argparse.Namespace(**{**vars(chosen), **shared}))
    except SystemExit as ended:
        return bool(ended.code)
    return False


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


def _collect(output: Path) -> None:
    """Write ``group_registration.tsv``, a row per transform."""
    files = sorted(output.rglob("sub-*_xfm.json"))
    if not files:
        raise InputError(f"{output} holds no results; run the level `participant` first.")
    rows = [batch.flat(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    lines = [tuple(row.get(column, "n/a") for column in columns) for row in rows]
    table = output / "group_registration.tsv"
    write_atomically(table, lambda part: _write(Path(part), columns, lines, "\t"))
    print(f"Wrote {table}: {len(rows)} images")


def _write(file: Path, columns: Sequence[str], lines: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=delimiter).writerows([columns, *lines])
