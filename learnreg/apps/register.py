"""``learnreg register``: register one pair, from files to files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from learnreg import __version__
from learnreg.apps.output import check_folder
from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.io import read_image, write_atomically, write_image
from learnreg.landmarks import read_landmark_pairs, read_landmarks
from learnreg.methods import Registration, register
from learnreg.metrics import score
from learnreg.reporting.figures import registration_figure, save_figure
from learnreg.similarity import ncc_loss
from learnreg.transforms import Affine, Transform
from learnreg.transforms.itk import read_transform
from learnreg.warping import warp

FILES = ("warped.nii.gz", "transform.h5", "figure.png", "metrics.json")


def run(options: argparse.Namespace) -> None:
    """Register, and write warped image, transform, figure and metrics."""
    output = Path(options.output)
    _check(options, output)
    set_device(options)
    fixed = read_image(options.fixed, labels=options.fixed_labels, mask=options.fixed_mask)
    moving = read_image(options.moving, labels=options.moving_labels, mask=options.moving_mask)
    fixed, moving = with_landmarks(fixed, moving, options.landmarks)
    initial = None if options.initial is None else read_transform(options.initial, ndim=fixed.ndim)
    result = register(
        fixed,
        moving,
        options.method or "deformable",
        checkpoint=options.checkpoint,
        refine=options.refine,
        weight=options.weight,
        initial=initial,
        trust=options.trust,
        device=options.device,
        progress=False if options.quiet else None,
    )
    metrics = {"fixed": str(options.fixed), "moving": str(options.moving), **measure(result)}
    metrics |= (
        {"method": options.method or "deformable"}
        if options.checkpoint is None
        else {
            "checkpoint": str(options.checkpoint),
            "refine": options.refine,
            **({} if options.weight is None else {"weight": options.weight}),
        }
    )
    metrics |= {"device": options.device, "threads": torch.get_num_threads(), "learnreg": __version__}
    save(result, metrics, output)
    if not options.quiet:
        print(summary(metrics))
        print(f"Wrote {output}: {', '.join(FILES)}")


def _check(options: argparse.Namespace, output: Path) -> None:
    """Check what can be checked before the computation."""
    if options.checkpoint is not None and options.method is not None:
        raise InputError("Give --method or --checkpoint, not both.")
    if options.refine and options.checkpoint is None:
        raise InputError("--refine improves the answer of a network; give --checkpoint too.")
    if options.weight is not None and options.checkpoint is None:
        raise InputError("--weight is for conditioned networks; give --checkpoint too.")
    if bool(options.fixed_labels) != bool(options.moving_labels):
        raise InputError("Give --fixed-labels and --moving-labels together, or neither.")
    if options.landmarks and len(options.landmarks) > 2:
        raise InputError(f"--landmarks takes one file with pairs, or two files, got {len(options.landmarks)}.")
    check_folder(output)
    existing = [name for name in FILES if (output / name).exists()]
    if existing and not options.overwrite:
        raise InputError(f"{output} already holds {', '.join(existing)}; give another folder, or --overwrite.")


def with_landmarks(fixed: Image, moving: Image, files: Sequence[str] | None) -> tuple[Image, Image]:
    """Attach landmarks from one file of pairs, or from one file per image."""
    if not files:
        return fixed, moving
    if len(files) == 1:
        first, second = read_landmark_pairs(files[0], fixed.grid, moving.grid)
    else:
        first, second = read_landmarks(files[0], fixed.grid), read_landmarks(files[1], moving.grid)
    if first.shape != second.shape:
        raise InputError(f"--landmarks: {first.shape[1]} in the fixed and {second.shape[1]} in the moving image.")
    return replace(fixed, landmarks=first), replace(moving, landmarks=second)


def set_device(options: argparse.Namespace) -> None:
    """Set the number of threads, and check that the device exists."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if str(options.device).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {options.device}: PyTorch sees no CUDA device here; use --device cpu.")
    try:
        torch.zeros(1, device=options.device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by device: unknown, missing, without data
        raise InputError(f"--device {options.device} is unknown or not available; use cpu, cuda or cuda:1.") from error


def measure(result: Registration) -> dict[str, Any]:
    """Measure agreement before and after, regularity, size of the deformation, and time."""
    field = result.sampled.field
    after = _scored(result, result.sampled)
    metrics: dict[str, Any] = {
        "seconds": round(result.seconds, 3),
        "peak_memory_mb": None if result.peak_bytes is None else round(result.peak_bytes / 1e6),
        "before": _agreement(_scored(result, Affine.identity(result.fixed.ndim))),
        "after": _agreement(after),
        "folding_percent": after["folding_percent"],
        "sd_log_jacobian": after["sd_log_jacobian"],
        "mean_displacement_mm": float(field.norm(dim=1).mean()),
        "largest_displacement_mm": float(field.norm(dim=1).max()),
        "iterations": sum(len(level.losses) for level in result.history),
    }
    return metrics


def _scored(result: Registration, transform: Transform) -> dict[str, Any]:
    fixed, moving = result.fixed, result.moving
    warped = warp(Image(moving.data, moving.grid), transform, fixed.grid)
    row = score(fixed, moving, transform, distances=True).row()
    return {"ncc": 1 - float(ncc_loss(warped.data, fixed.data, fixed.mask)), **row}


def _agreement(row: dict[str, Any]) -> dict[str, Any]:
    """Select the scores of agreement."""
    kept = {key: row[key] for key in ("ncc", "dice", "dice_by_label", "hd95_mm") if key in row}
    return kept | ({"landmarks_mm": row["tre_mm"]} if "tre_mm" in row else {})


def save(result: Registration, metrics: dict[str, Any], output: Path) -> None:
    """Write all files, after everything is computed."""
    figure = registration_figure(result.fixed, result.moving, result.sampled, title=summary(metrics))
    warped = result.warped.data
    write_image(warped[0], result.fixed.grid, output / FILES[0])
    result.save_transform(output / FILES[1])
    save_figure(figure, output / FILES[2])
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(output / FILES[3], lambda part: Path(part).write_text(text, encoding="utf-8"))


def summary(metrics: dict[str, Any]) -> str:
    """Return the main figures on one line."""
    before, after = metrics["before"], metrics["after"]
    parts = [f"correlation {before['ncc']:.3f} -> {after['ncc']:.3f}"]
    if "dice" in after:
        parts.append(f"Dice {before['dice']:.3f} -> {after['dice']:.3f}")
    if "landmarks_mm" in after:
        parts.append(f"landmarks {before['landmarks_mm']:.2f} -> {after['landmarks_mm']:.2f} mm")
    parts.append(f"folding {metrics['folding_percent']:.3f} %")
    parts.append(f"{metrics['seconds']:.2f} s")
    return ", ".join(parts)
