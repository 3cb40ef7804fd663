"""``learnreg evaluate``: compare methods on a data set, by labels if it has any."""

from __future__ import annotations

import csv
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from learnreg import __version__
from learnreg.apps.errors import debugging, naming, reason_of
from learnreg.apps.output import check_unused, recorded_warnings
from learnreg.apps.register import set_device
from learnreg.apps.submission import submission_name, write_displacement
from learnreg.data.checks import check_comparable
from learnreg.data.datasets import Case, centered, reversed_pairs
from learnreg.data.formats import Pair, Subject, read_pairs, read_subjects
from learnreg.data.preprocessing import ModelSpace
from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.methods.api import DEFAULT, choose_method
from learnreg.methods.base import Method, Registration
from learnreg.methods.evaluation import METRICS, Row, evaluate, summarize, table
from learnreg.typing import PathLike
from learnreg.writing import distinct_names, together

T = TypeVar("T")
FILES = ("table.md", "cases.csv", "metrics.json")
SUBMISSION = "submission"  # folder of the displacements
EVERY = 10.0  # seconds after which what is done is written


@dataclass(frozen=True)
class Settings:
    """What the scores depend on, as ``metrics.json`` records it; see the options of ``learnreg evaluate``."""

    data: str
    method: Sequence[str] = ()
    checkpoint: Sequence[str] = ()
    refine: int = 0
    block: tuple[int, int] | None = None
    shape: Sequence[int] | None = None
    spacing: float = 1.0
    trust: Sequence[str] = ()
    device: str = "cpu"


def run(
    settings: Settings,
    *,
    output: Path | None = None,
    submission: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Evaluate, print the table, and write it."""
    if output is not None:
        check_unused(output, (*FILES, SUBMISSION), overwrite=overwrite)
    settings = replace(settings, device=set_device(settings.device, threads))
    pairs = read_pairs(settings.data)
    if pairs is None:
        subjects = read_subjects(settings.data)
        pairs = reversed_pairs(within(subjects, settings.block, settings.data))
    else:
        pairs = within(pairs, settings.block, settings.data)
    if not pairs:
        raise InputError(f"There is no pair to evaluate in {settings.data}; give at least two images (--block 0:2).")
    missing = [s.image for pair in pairs for s in pair if s.labels is None]
    if missing and any(s.labels is not None for pair in pairs for s in pair):
        warnings.warn(
            f"{missing[0]} has no labels; pairs without labels are compared by their intensities only.", stacklevel=2
        )
    methods = choose_methods(settings)
    if submission and (output is None or len(methods) != 1 or settings.shape):
        raise InputError("--submission writes the displacements of one method to -o OUT; leave --shape out.")
    kept = output / SUBMISSION if submission and output is not None else None
    rows, failed = _evaluated(pairs, methods, settings, (output, kept), hidden=quiet or not sys.stderr.isatty())
    print(table(rows))
    if output is not None:
        _remove_replaced(output / SUBMISSION, [] if kept is None else _done(pairs, rows))
        print(f"Wrote {output}: {', '.join(FILES)}")
    if failed:
        for name, reason in failed.items():
            print(f"failed: {name}: {reason}", file=sys.stderr)
        print(f"{len(failed)} of {len(pairs)} cases failed; the table is of the others.", file=sys.stderr)
        raise SystemExit(1)


def _evaluated(
    pairs: Sequence[Pair],
    methods: Mapping[str, Method],
    settings: Settings,
    outputs: tuple[Path | None, Path | None],
    *,
    hidden: bool = True,
) -> tuple[list[Row], dict[str, str]]:
    """Evaluate the cases one by one, and write what is done every few seconds.

    Returns:
        The rows, and why cases failed.

    Raises:
        InputError: All cases failed.
    """
    output, submission = outputs  # of the tables, and of displacements
    rows: list[Row] = []
    failed: dict[str, str] = {}
    written = time.monotonic()
    with recorded_warnings() as noticed:
        for name, fixed, moving in tqdm(_named(pairs), desc=", ".join(methods), unit="case", disable=hidden):
            try:
                case = Case(name, _read(fixed, settings), _read(moving, settings))
                check_comparable(case.fixed, case.moving, (fixed.image, moving.image))
                with naming({"the fixed image": fixed.image, "the moving image": moving.image}):
                    keep = None if submission is None else partial(_submit, submission, fixed, moving)
                    rows += evaluate([case], methods, on_case=keep, device=settings.device)
            except Exception as error:
                if debugging():
                    raise
                failed[name] = reason_of(error)
            if output is not None and rows and time.monotonic() - written > EVERY:
                write(rows, output, settings, noticed, failed)
                written = time.monotonic()
    if not rows:
        raise InputError(next(iter(failed.values())) + (f" All {len(failed)} cases failed." if len(failed) > 1 else ""))
    if output is not None:
        write(rows, output, settings, noticed, failed)
    return rows, failed


def _done(pairs: Sequence[Pair], rows: Sequence[Row]) -> list[Pair]:
    """Return the pairs that have a row."""
    names = {row["case"] for row in rows}
    return [(fixed, moving) for name, fixed, moving in _named(pairs) if name in names]


def _remove_replaced(folder: Path, pairs: Sequence[Pair]) -> None:
    """Remove the displacements of a former result from a submission of ``pairs``."""
    current = {submission_name(fixed.image, moving.image) for fixed, moving in pairs}
    for file in folder.glob("disp_*.nii.gz"):
        if file.name not in current:
            file.unlink()


def _submit(folder: Path, fixed: Subject, moving: Subject, case: Case, done: Mapping[str, Registration]) -> None:
    """Write the displacement of a case as the challenge takes it."""
    (result,) = done.values()
    folder.mkdir(parents=True, exist_ok=True)
    write_displacement(
        result.sampled, result.fixed.grid, result.moving.grid, folder / submission_name(fixed.image, moving.image)
    )


def choose_methods(settings: Settings) -> dict[str, Method]:
    """Return the methods to compare, by their name in the table."""
    methods = {
        shown: choose_method(name, trust=settings.trust) for shown, name in method_names(settings.method).items()
    }
    if settings.refine and not settings.checkpoint:
        raise InputError("--refine improves the answer of a network; give --checkpoint too.")
    for checkpoint in dict.fromkeys(settings.checkpoint):
        name = "one-shot" if len(settings.checkpoint) == 1 else f"one-shot {checkpoint}"
        methods[name] = choose_method(checkpoint=checkpoint, trust=settings.trust, device=settings.device)
        if settings.refine:
            methods[f"{name} + refine {settings.refine}"] = choose_method(
                checkpoint=checkpoint, refine=settings.refine, trust=settings.trust, device=settings.device
            )
    return methods or {DEFAULT: choose_method()}


def method_names(methods: Sequence[str]) -> dict[str, str]:
    """Return the presets and files of ``methods`` by unique names: a preset's own, the end of a file's path.

    Example:
        >>> method_names(["affine", "a/mine.yaml", "b/mine.yaml", "b/affine.yaml"])
        {'affine': 'affine', 'a_mine': 'a/mine.yaml', 'b_mine': 'b/mine.yaml', 'b/affine.yaml': 'b/affine.yaml'}
    """
    unique = list(dict.fromkeys(methods))
    files = [name for name in unique if Path(name).suffix]
    short = dict(zip(files, distinct_names([Path(name).with_suffix("") for name in files]), strict=True))
    return {name if short.get(name, name) in unique else short[name]: name for name in unique}


def within(items: Sequence[T], block: tuple[int, int] | None, data: PathLike) -> list[T]:
    """Return the items of a block of positions; all without a block."""
    if block is None:
        return list(items)
    if block[1] > len(items):
        raise InputError(f"--block {block[0]}:{block[1]} goes beyond the {len(items)} entries of {data}.")
    return list(items[block[0] : block[1]])


def _named(pairs: Sequence[Pair]) -> list[tuple[str, Subject, Subject]]:
    """Return each pair with its name."""
    files = list(dict.fromkeys(subject.image for pair in pairs for subject in pair))
    names = dict(zip(files, distinct_names(files), strict=True))
    return [(f"{names[fixed.image]} < {names[moving.image]}", fixed, moving) for fixed, moving in pairs]


def _read(subject: Subject, settings: Settings) -> Image:
    image = subject.read()
    if settings.shape:
        image = centered(ModelSpace(settings.spacing, settings.shape).place(image))
    return image


def write(
    rows: Sequence[Row],
    folder: Path,
    settings: Settings,
    noticed: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write the table, every case, and both as JSON, with the warnings that were ``noticed`` and what failed."""
    columns = ["case", "method", *(key for key, _, _ in METRICS if any(key in row for row in rows))]

    def cases(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    content = {
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "learnreg": __version__,
        **({"warnings": list(noticed)} if noticed else {}),
        **({"failed": dict(failed)} if failed else {}),
        "summary": summarize(rows),
        "cases": list(rows),
    }
    text = json.dumps(content, indent=2) + "\n"
    with together(folder) as part:
        (part / FILES[0]).write_text(table(rows) + "\n", encoding="utf-8")
        cases(str(part / FILES[1]))
        (part / FILES[2]).write_text(text, encoding="utf-8")
