"""Register hearts (systole to diastole) and lungs (expiration to inspiration); print what docs/benchmarks.md quotes.

python scripts/hearts_and_lungs.py $LEARNREG_DATA
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

import learnreg
from learnreg.image import Image, label_values
from learnreg.landmarks import read_landmark_pairs
from learnreg.metrics import dice_scores, folding_fraction, target_registration_error


def hearts(folder: Path, methods: list[str]) -> None:
    """Print the Dice of the cavity per patient."""
    print("\n| patient | start |" + "".join(f" `{name}` | folding % | CPU s |" for name in methods))
    print("|---|---|" + "---|---|---|" * len(methods))
    for file in tqdm(sorted(folder.glob("*_ED.nii.gz")), desc="hearts", leave=False):
        patient = file.name.removesuffix("_ED.nii.gz")
        fixed, moving = (
            learnreg.read_image(folder / f"{patient}_{phase}.nii.gz", labels=folder / f"{patient}_{phase}_label.nii.gz")
            for phase in ("ED", "ES")
        )
        cells = [patient, f"{overlap(fixed, learnreg.warp(moving, learnreg.Affine.identity(3), fixed.grid)):.3f}"]
        for name in methods:
            began = time.process_time()
            result = learnreg.register(fixed, moving, name, progress=False)
            seconds = time.process_time() - began
            folded = 100 * float(folding_fraction(result.sampled.field, fixed.grid))
            cells += [f"{overlap(fixed, result.warped):.3f}", f"{folded:.3f}", f"{seconds:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def overlap(fixed: Image, warped: Image) -> float:
    """Return the mean Dice over the labels that both images have: the cavity."""
    assert fixed.labels is not None and warped.labels is not None  # noqa: S101 - both were read
    return float(dice_scores(warped.labels, fixed.labels, label_values(fixed.labels, warped.labels)).mean())


def lungs(folder: Path) -> None:
    """Print the error of landmarks; the images are masks, and every second landmark guides the registration."""
    print("\n| case | start | masks alone | guided: on those that guide | guided: on the others | CPU s |")
    print("|---|---|---|---|---|---|")
    for file in tqdm(sorted((folder / "copd_landmarks").glob("*.csv")), desc="lungs", leave=False):
        fixed, moving = (
            learnreg.read_image(folder / "copd_masks" / f"{file.stem}_{phase}.nii.gz") for phase in ("exp", "insp")
        )
        points = read_landmark_pairs(file, fixed.grid, moving.grid)
        guides, others = (tuple(p[:, first::2] for p in points) for first in (0, 1))
        alone = learnreg.register(fixed, moving, "lung", progress=False).transform
        began = time.process_time()
        guided = learnreg.register(
            replace(fixed, landmarks=guides[0]), replace(moving, landmarks=guides[1]), "lung", progress=False
        ).transform
        seconds = time.process_time() - began
        cells = [
            f"{float(torch.linalg.vector_norm(others[0] - others[1], dim=-1).mean()):.1f}",
            f"{float(target_registration_error(alone, *others).mean()):.1f}",
            f"{float(target_registration_error(guided, *guides).mean()):.2f}",
            f"{float(target_registration_error(guided, *others).mean()):.1f}",
            f"{seconds:.0f}",
        ]
        print(f"| {file.stem} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hearts(options.data / "cardiac", ["deformable", "fast"])
    lungs(options.data / "lung")


if __name__ == "__main__":
    main()
