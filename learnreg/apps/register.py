"""``learnreg register``: register one pair, from files to files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from learnreg import __version__, reporting
from learnreg.apps.apply import are_few_integers
from learnreg.apps.errors import naming, one_line
from learnreg.apps.output import check_unused, recorded_warnings
from learnreg.apps.transforms import write_inverse
from learnreg.data.checks import check_comparable
from learnreg.errors import InputError
from learnreg.image import Image, with_field_of_view
from learnreg.io import read_image, write_image
from learnreg.landmarks import pair_landmarks, read_landmark_pairs, read_named_landmarks
from learnreg.memory import check_fits
from learnreg.methods import Registration, register
from learnreg.methods.api import DEFAULT, choose_method
from learnreg.methods.contrast import SAME, contrast_agreement
from learnreg.methods.verdicts import Verdict, exit_status, verdict
from learnreg.metrics import score
from learnreg.similarity import mutual_information_loss, ncc_loss
from learnreg.similarity.masking import both_masks
from learnreg.transforms import Affine, Displacement
from learnreg.transforms.files import read_transform
from learnreg.typing import PathLike
from learnreg.warping import warp
from learnreg.writing import together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITING = 24  # volumes in float32 that writing and measuring take at most; an .h5 holds float64
SAMPLES = 2**20  # of voxels for a reported mutual information
FILES = ("warped.nii.gz", "transform.h5", "figure.png", "metrics.json")
INVERSE = "inverse.h5"
REPORT = "report.html"


def run(
    fixed: PathLike,
    moving: PathLike,
    *,
    output: Path,
    method: str | None = None,
    checkpoint: PathLike | None = None,
    refine: int = 0,
    weight: float | None = None,
    initial: PathLike | None = None,
    labels: tuple[PathLike | None, PathLike | None] = (None, None),
    masks: tuple[PathLike | None, PathLike | None] = (None, None),
    landmarks: Sequence[PathLike] | None = None,
    inverse: bool = False,
    report: bool = False,
    strict: bool = False,
    fill: float | None = None,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Register, and write warped image, transform, figure and metrics; see ``learnreg register --help``."""
    check_network_options(refine, weight, checkpoint)
    if bool(labels[0]) != bool(labels[1]):
        raise InputError("Give --fixed-labels and --moving-labels together, or neither.")
    if landmarks and len(landmarks) > 2:
        raise InputError(f"--landmarks takes one file with pairs, or two files, got {len(landmarks)}.")
    check_unused(output, (*FILES, INVERSE, REPORT), overwrite=overwrite)
    device = set_device(device, threads)
    solver = choose_method(method, checkpoint=checkpoint, refine=refine, weight=weight, trust=trust, device=device)
    with recorded_warnings() as noticed:
        images = (
            read_image(fixed, labels=labels[0], mask=masks[0]),
            read_image(moving, labels=labels[1], mask=masks[1]),
        )
        check_writing(*images)
        _warn_of_labels({fixed: images[0], moving: images[1]})
        check_comparable(*images, labels)
        images = with_landmarks(*images, landmarks)
        with naming({"the fixed image": fixed, "the moving image": moving}):
            result = register(*images, solver, initial=initial, device=device, progress=False if quiet else None)
    metrics: dict[str, Any] = {"fixed": str(fixed), "moving": str(moving)}
    if checkpoint is None:
        metrics |= {"method": method or DEFAULT}
    else:
        metrics |= {"checkpoint": str(checkpoint), "refine": refine}
        metrics |= {} if weight is None else {"weight": weight}
    metrics |= {"device": device, "threads": torch.get_num_threads(), "learnreg": __version__}
    metrics |= {"warnings": noticed} if noticed else {}
    metrics = save(result, metrics, output, fill=fill, inverse=inverse, report=report)
    if not quiet:
        print(summary(metrics))
        print(verdict_line(metrics))
        print(f"Wrote {output}: {', '.join(name for name in (*FILES, INVERSE, REPORT) if (output / name).exists())}")
    if exit_status(metrics.get("verdict", "WARN"), strict=strict):
        raise SystemExit(1)


def _warn_of_labels(images: Mapping[PathLike, Image]) -> None:
    """Warn once if images look like segmentations, whose numbers are no intensities."""
    found = [str(file) for file, image in images.items() if are_few_integers(image.data.numpy())]
    if found:
        warnings.warn(
            f"{' and '.join(found)}: this looks like a segmentation, and its numbers are compared as intensities; give "
            "the images, and segmentations as --fixed-labels and --moving-labels.",
            stacklevel=2,
        )


def check_network_options(refine: int, weight: float | None, checkpoint: PathLike | None) -> None:
    """Raise ``InputError`` if an option of networks is given without a network."""
    if refine and checkpoint is None:
        raise InputError("--refine improves the answer of a network; give --checkpoint too.")
    if weight is not None and checkpoint is None:
        raise InputError("--weight is for conditioned networks; give --checkpoint too.")


def check_writing(fixed: Image, moving: Image) -> None:
    """Raise ``InputError`` if there is not enough memory to write and measure a result, before it is computed."""
    largest = max((fixed, moving), key=lambda image: image.data[0, 0].numel())
    size = "x".join(map(str, largest.grid.shape[::-1]))
    what = f"To write and measure a result of {size} voxels"
    remedy = "Crop the images, or use a machine with more memory."
    check_fits(4.0 * WRITING * largest.data[0, 0].numel(), "cpu", what, remedy)


def with_landmarks(fixed: Image, moving: Image, files: Sequence[PathLike] | None) -> tuple[Image, Image]:
    """Attach landmarks from one file of pairs, or from one file per image."""
    if not files:
        return fixed, moving
    if len(files) == 1:
        first, second = read_landmark_pairs(files[0], fixed.grid, moving.grid)
    else:
        named = read_named_landmarks(files[0], fixed.grid), read_named_landmarks(files[1], moving.grid)
        first, second = pair_landmarks(*named)
    fixed, moving = replace(fixed, landmarks=first), replace(moving, landmarks=second)
    check_comparable(replace(fixed, labels=None), moving, (files[0], files[-1]))
    return fixed, moving


def set_device(device: str, threads: int | None = None) -> str:
    """Set the number of threads, and return the device, of which ``auto`` is the fastest.

    Raises:
        InputError: The device does not exist, or does not compute.

    Example:
        >>> set_device("cpu")
        'cpu'
    """
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = fastest_device()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu.")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by device: unknown, missing, without data
        raise InputError(f"--device {device} is unknown or not available; use cpu, cuda or cuda:1.") from error
    return device


def fastest_device() -> str:
    """Return ``cuda``, ``mps`` or ``cpu``, the first that is available."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def measure(result: Registration) -> dict[str, Any]:
    """Measure agreement before and after, regularity, size of the deformation, and time.

    A measure that cannot be computed is ``None``.
    """
    fixed, moving = result.fixed, result.moving
    view = with_field_of_view(Image(moving.data, moving.grid, moving.mask))
    unmoved = Affine.identity(fixed.ndim)
    warped = warp(view, result.sampled, fixed.grid)
    same = contrast_agreement(fixed, moving, Displacement(result.sampled.field, fixed.grid)) >= SAME
    after, warped = _compared(fixed, warped, same), warp(view, unmoved, fixed.grid)
    before = _compared(fixed, warped, same)
    del view, warped  # their volumes; distances need memory of their own
    before |= score(fixed, moving, unmoved, distances=True).row()
    after |= score(fixed, moving, result.sampled, distances=True).row()
    size = result.sampled.field.norm(dim=1)
    return {
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": None if result.peak_bytes is None else round(result.peak_bytes / 1e6),
        "before": _agreement(before),
        "after": _agreement(after),
        "folding_percent": after["folding_percent"],
        "sd_log_jacobian": after["sd_log_jacobian"],
        **{name: after[name] for name in ("sd_log_jacobian_learn2reg",) if name in after},
        "mean_displacement_mm": float(size.mean()),
        "largest_displacement_mm": float(size.max()),
        "iterations": sum(len(level.losses) for level in result.history),
        **({"landmarks_guided": result.guided} if "tre_mm" in after else {}),
        **judged(result),
    }


def judged(result: Registration) -> dict[str, Any]:
    """Return the verdict for ``metrics.json``: level, reasons, and what they were made from."""
    found = verdict(result)
    measures = {name: float(f"{value:.4g}") for name, value in found.measures.items()}
    return {"verdict": found.level, "verdict_reasons": list(found.reasons), "verdict_measures": measures}


def verdict_line(metrics: dict[str, Any]) -> str:
    """Return the verdict in one line.

    Example:
        >>> verdict_line({"verdict": "WARN", "verdict_reasons": ["18 % of the moving image lies outside"]})
        'verdict: WARN: 18 % of the moving image lies outside'
    """
    if "verdict" not in metrics:
        return "verdict: WARN: not measured"
    return f"verdict: {Verdict(metrics['verdict'], tuple(metrics['verdict_reasons']))}"


def _compared(fixed: Image, warped: Image, same: bool) -> dict[str, Any]:
    """Compare intensities where the moving image was seen."""
    seen = both_masks(fixed.mask, warped.mask)
    if seen is None or int((seen > 0).sum()) < 2:
        return {"ncc": None}
    correlation = {"ncc": 1 - float(ncc_loss(warped.data, fixed.data, seen))}
    if same:
        return correlation
    information = -mutual_information_loss(warped.data, fixed.data, seen, samples=SAMPLES)
    return correlation | {"mutual_information": float(information)}


def _agreement(row: dict[str, Any]) -> dict[str, Any]:
    """Select the scores of agreement."""
    names = ("ncc", "mutual_information", "dice", "dice_by_label", "hd95_mm", "assd_mm", "nsd")
    kept = {key: row[key] for key in names if key in row}
    return kept | ({"landmarks_mm": row["tre_mm"]} if "tre_mm" in row else {})


def save(
    result: Registration,
    metrics: dict[str, Any],
    output: Path,
    *,
    fill: float | None = None,
    inverse: bool = False,
    report: bool = False,
) -> dict[str, Any]:
    """Write all files together. A measure or figure that fails costs neither the image nor the transform.

    Args:
        result: The registration.
        metrics: What is known without measuring.
        output: Folder of the files.
        fill: Value beyond the moving image; ``None`` is its background.
        inverse: Write the inverse transform too, and measure it.
        report: Write ``report.html`` too, see :func:`learnreg.reporting.write_report`.

    Returns:
        ``metrics`` with what was measured.
    """
    with together(output) as part:
        result.save_transform(part / FILES[1])
        warped = result.warped if fill is None else warp(result.moving, result.sampled, result.fixed.grid, fill=fill)
        write_image(warped.data[0], result.fixed.grid, part / FILES[0])
        try:
            if inverse:
                written = read_transform(part / FILES[1])  # as other programs read it
                residual = write_inverse(written, result.moving.grid, part / INVERSE)
                metrics = metrics | {"inverse_residual_mm": {"mean": residual.mean, "max": residual.greatest}}
            metrics = metrics | measure(result)
            figure = _figure(result, metrics, summary(metrics))
            reporting.save_figure(figure, part / FILES[2])
            if report:
                reporting.write_report(result, metrics, part / REPORT)
        except (RuntimeError, MemoryError, ArithmeticError, ValueError) as error:
            failed = f"not everything could be measured or drawn: {type(error).__name__}: {one_line(error)}"
            metrics = metrics | {"warnings": [*metrics.get("warnings", []), failed]}
            warnings.warn(failed, stacklevel=2)
        (part / FILES[3]).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if not report:
        (output / REPORT).unlink(missing_ok=True)  # it is that of the result that was replaced
    if not inverse:
        (output / INVERSE).unlink(missing_ok=True)  # it is that of the transform that was replaced
    return metrics


def _figure(result: Registration, metrics: dict[str, Any], title: str) -> Figure:
    """Draw the pair, named by its files; a checkerboard shows more than a difference of two contrasts."""
    return reporting.registration_figure(
        result.fixed,
        result.moving,
        result.sampled,
        initial=result.initial,
        title=title,
        names=(Path(metrics.get("fixed", "fixed")).name, Path(metrics.get("moving", "moving")).name),
        same_contrast="mutual_information" not in metrics["after"],
    )


def summary(metrics: dict[str, Any]) -> str:
    """Return the main figures on one line."""
    if "after" not in metrics:
        return f"{metrics['method'] if 'method' in metrics else metrics['checkpoint']}: not measured"
    before, after = metrics["before"], metrics["after"]
    parts = []
    if after["ncc"] is None:
        parts.append("the images do not overlap")
    elif "mutual_information" in after:
        information = (f"{side.get('mutual_information', 0.0):.3f}" for side in (before, after))
        parts.append("different contrasts, mutual information " + " -> ".join(information))
    else:
        parts.append(f"correlation {'none' if before['ncc'] is None else format(before['ncc'], '.3f')}")
        parts[0] += f" -> {after['ncc']:.3f}"
    if "dice" in after:
        parts.append(f"Dice {before['dice']:.3f} -> {after['dice']:.3f}")
    if "landmarks_mm" in after:
        parts.append(f"landmarks {before['landmarks_mm']:.2f} -> {after['landmarks_mm']:.2f} mm")
        if metrics.get("landmarks_guided"):
            parts[-1] += " (guided by them: no measure of accuracy)"
    parts.append(f"folding {metrics['folding_percent']:.3f} %")
    parts.append(f"{metrics['seconds']:.2f} s")
    return ", ".join(parts)
