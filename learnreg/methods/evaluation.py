"""Compare methods on pairs, by labels, landmarks or a known transform where there are any, else by similarity."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from learnreg.data.datasets import Case
from learnreg.errors import InputError
from learnreg.image import Image, with_field_of_view
from learnreg.methods.api import register
from learnreg.methods.base import Method, Registration
from learnreg.metrics import robustness30, score
from learnreg.reporting.tables import markdown
from learnreg.similarity import mutual_information_loss, ncc_loss
from learnreg.similarity.masking import both_masks
from learnreg.transforms import Affine, Transform
from learnreg.warping import warp

START = "start"
SAMPLES = 2**18  # of voxels for a mutual information
ROBUSTNESS = {"tre_mm": True, "dice": False}  # of Learn2Reg's ranking: whether lower is better


Row = dict[str, Any]
METRICS: tuple[tuple[str, str, int], ...] = (
    ("error_mm", "error mm", 3),
    ("tre_mm", "TRE mm", 2),
    ("dice", "Dice", 3),
    ("hd95_mm", "HD95 mm", 2),
    ("assd_mm", "ASSD mm", 2),
    ("nsd", "NSD 1 mm", 3),
    ("ncc", "correlation", 3),
    ("information", "NMI - 1", 3),
    ("sd_log_jacobian", "SDlogJ", 3),
    ("sd_log_jacobian_learn2reg", "SDlogJ L2R", 3),
    ("folding_percent", "folding %", 4),
    ("ndv_percent", "NDV %", 4),
    ("seconds", "seconds", 2),
    ("cpu_seconds", "CPU s", 2),
    ("peak_mb", "peak MB", 0),
)


def evaluate(
    cases: Iterable[Case],
    methods: Mapping[str, Method],
    *,
    on_case: Callable[[Case, Mapping[str, Registration]], Any] | None = None,
    distances: bool = True,
    device: str = "cpu",
) -> list[Row]:
    """Register every case with every method, and score the results; the first row of a case is the score before.

    Single slices are registered in their plane, as by :func:`register`.

    Args:
        cases: Pairs, with labels, landmarks or a true transform if they are known; see :func:`score_case`.
        methods: By the name in the table.
        on_case: Called after each case with its registrations.
        distances: Compute distances between the surfaces of labels, which takes long for many labels.
        device: Where the methods compute; scores are computed on the CPU.

    Returns:
        One row per case and method, with the keys ``case``, ``method`` and those of ``METRICS``.

    Raises:
        InputError: A method fails; the message names the case.
    """
    rows: list[Row] = []
    for case in cases:
        identity = Affine.identity(case.fixed.ndim)
        began = {"case": case.name, "method": START, "seconds": 0.0, "cpu_seconds": 0.0}
        rows.append(began | score_case(case, identity, distances=distances))
        done: dict[str, Registration] = {}
        for name, method in methods.items():
            cpu = time.process_time()
            try:
                pair = _images(case.fixed), _images(case.moving)
                result = register(*pair, method, device=device, progress=False)
            except InputError as error:
                raise InputError(f"{name} on {case.name}: {error}") from error
            cpu = time.process_time() - cpu
            done[name] = replace(result, fixed=case.fixed, moving=case.moving)
            measured = {"seconds": result.seconds, "cpu_seconds": cpu}
            if result.peak_bytes is not None:
                measured["peak_mb"] = result.peak_bytes / 1e6
            scores = score_case(case, done[name].sampled, distances=distances)
            rows.append({"case": case.name, "method": name, **scores, **measured})
        if on_case is not None:
            on_case(case, done)
    return rows


def _images(image: Image) -> Image:
    """Return an image without its labels, which a method must not see."""
    return Image(image.data, image.grid, image.mask)


def score_case(case: Case, transform: Transform, *, distances: bool = True) -> Row:
    """Score one transform against what is known of a case, see :func:`learnreg.metrics.score`.

    Args:
        case: One pair, with labels, landmarks or a true transform if they are known.
        transform: Fixed to moving.
        distances: See :func:`learnreg.metrics.score`.

    Returns:
        The scores by the keys of ``METRICS``, and ``dice_by_label``. If the case has no labels in common, no landmarks
        and no true transform, similarities take their place: ``ncc``, the correlation of the intensities where both
        images are seen, and ``information``, their normalized mutual information minus 1.
    """
    row = score(case.fixed, case.moving, transform, truth=case.truth, distances=distances, folds=distances).row()
    return row if {"dice", "tre_mm", "error_mm"} & set(row) else _similarity(case, transform) | row


def _similarity(case: Case, transform: Transform) -> Row:
    """Compare the intensities of the channels' mean where both images are seen."""
    fixed, moving = (
        with_field_of_view(Image(image.data.mean(1, keepdim=True), image.grid, image.mask))
        for image in (case.fixed, case.moving)
    )
    warped = warp(moving, transform, fixed.grid)
    seen = both_masks(fixed.mask, warped.mask)
    if seen is None or int((seen > 0).sum()) < 2:
        return {}
    information = mutual_information_loss(warped.data, fixed.data, seen, normalized=True, samples=SAMPLES)
    return {"ncc": 1 - float(ncc_loss(warped.data, fixed.data, seen)), "information": 1 - float(information)}


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Compute mean and standard deviation over the cases, one row per method in order of appearance.

    ``tre_mm_30`` and ``dice_30`` are :func:`learnreg.metrics.robustness30`.
    """
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        entry: Row = {"method": method, "cases": len(own)}
        for key, _, _ in METRICS:
            values = [row[key] for row in own if key in row and row[key] == row[key]]
            if values:
                entry[key] = statistics.fmean(values)
                entry[f"{key}_std"] = statistics.pstdev(values)
                if key in ROBUSTNESS:
                    entry[f"{key}_30"] = robustness30(values, lower_is_better=ROBUSTNESS[key])
        summary.append(entry)
    return summary


def table(rows: Sequence[Row]) -> str:
    """Format a summary as a Markdown table, mean ± standard deviation."""
    summary = summarize(rows)
    columns = [(key, title, digits) for key, title, digits in METRICS if any(key in row for row in summary)]
    lines = [["method", *(title for _, title, _ in columns)]]
    for row in summary:
        cells = [
            f"{row[key]:.{digits}f} ± {row[f'{key}_std']:.{digits}f}" if key in row else ""
            for key, _, digits in columns
        ]
        lines.append([row["method"], *cells])
    return markdown(lines)
