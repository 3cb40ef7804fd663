"""Measure the released model for any pair beside classical presets; print what models/universal.md quotes.

python scripts/universal.py $LEARNREG_DATA [--groups brains stress ...] [--alone]

Subjects are those that neither training nor tuning used. A pair is moved by its header, so nothing is resampled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import median_filter
from tqdm.auto import tqdm

import learnreg
from learnreg.data.anatomies import Draws, smooth_noise
from learnreg.grid import Grid, apply_affine
from learnreg.image import Image
from learnreg.metrics import folding_fraction, score
from learnreg.sampling import resize_image
from learnreg.transforms import Affine, Transform, Velocity, chain
from learnreg.warping import warp

DEGREES, SHIFT = (30.0, -25.0, 25.0), (25.0, -20.0, 24.0)  # 45 degrees and 40 mm in all


@dataclass(frozen=True)
class Case:
    """A pair and its measure.

    Args:
        group: Row of the table.
        fixed: The reference.
        moving: The image to align.
        measure: Of a transform from fixed to moving.
        classical: Preset beside the model, for these images.
    """

    group: str
    fixed: Image
    moving: Image
    measure: Callable[[Transform], float]
    classical: str


def dice(fixed: Image, moving: Image, transform: Transform) -> float:
    """Return the mean Dice of the labels that both images have."""
    found = score(fixed, moving, transform).dice
    assert found is not None  # noqa: S101 - the pairs have labels
    return float(found.nanmean())


def labelled(group: str, fixed: Image, moving: Image, classical: str) -> Case:
    """Return a case that is measured by Dice."""
    return Case(group, fixed, moving, partial(dice, fixed, moving), classical)


def moved(image: Image, degrees: tuple[float, ...] = DEGREES, shift: tuple[float, ...] = SHIFT) -> Image:
    """Turn an image about its center and shift it, in its header."""
    x, y, z = (torch.deg2rad(torch.tensor(d, dtype=torch.float64)) for d in degrees)
    zero = torch.zeros(())
    generator = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(1, 3, 3)
    turn = Affine.about(torch.matrix_exp(generator), torch.tensor([shift]).double(), image.grid.center.double())
    affine = (turn.matrix @ image.grid.affine.double()).to(image.grid.affine)
    return replace(image, grid=Grid(image.grid.shape, affine))


def flipped(image: Image, axis: int) -> Image:
    """Reverse the samples along an axis, as a header that lost its orientation does."""
    labels = None if image.labels is None else image.labels.flip(axis)
    return replace(image, data=image.data.flip(axis), labels=labels)


def biased(image: Image) -> Image:
    """Multiply the intensities by a smooth field between about 1/2 and 2."""
    draws = Draws([5], "cpu")
    noise = smooth_noise(draws, Grid.regular((16, 16, 16)), 1, torch.tensor([5.0]))
    field = torch.nn.functional.interpolate(noise, image.grid.shape, mode="trilinear")
    return image.with_data(image.data * torch.exp(0.4 * field))


def half(image: Image) -> Image:
    """Leave out the upper half."""
    kept = image.grid.shape[0] // 2
    labels = None if image.labels is None else image.labels[:, :, :kept]
    return replace(
        image, data=image.data[:, :, :kept], labels=labels, grid=Grid((kept, *image.grid.shape[1:]), image.grid.affine)
    )


def sliced(image: Image, thickness: float = 6.0) -> Image:
    """Average slices to a thickness in mm; the labels stay where they were, so only the intensities are measured on."""
    count = max(1, round(float(image.grid.extent[0, 2]) / thickness))
    thick = resize_image(Image(image.data, image.grid), (count, *image.grid.shape[1:]))
    return image.with_data(resize_image(thick, image.grid.shape).data)


def inverted(image: Image) -> Image:
    """Invert the contrast within the object."""
    return image.with_data((image.data.max() - image.data) * (image.data > 0))


def brains(data: Path) -> list[tuple[Image, Image]]:
    """Return the pairs of the validation subjects."""
    images = {
        name: learnreg.read_image(
            data / "brain" / "images" / f"{name}.nii.gz", labels=data / "brain" / "labels" / f"{name}.nii.gz"
        )
        for name in ("1019", "1104", "1122")
    }
    return [(images[a], images[b]) for a, b in (("1019", "1104"), ("1104", "1122"), ("1122", "1019"))]


def brain_cases(data: Path) -> Iterator[Case]:
    """Yield brains of different people: as they are, turned, and with a header that lost its orientation."""
    pairs = brains(data)
    for fixed, moving in pairs:
        yield labelled("brains", fixed, moving, "brain")
    for fixed, moving in pairs:
        yield labelled("brains, turned by 45 degrees, shifted by 40 mm", fixed, moved(moving), "brain")
    for axis, (fixed, moving) in zip((2, 3, 4), pairs, strict=True):
        yield labelled("brains, both flipped", flipped(fixed, axis), flipped(moving, axis), "brain")


def stress_cases(data: Path) -> Iterator[Case]:
    """Yield one pair of brains under stress."""
    fixed, moving = brains(data)[0]
    yield labelled("inverted contrast", fixed, inverted(moving), "multimodal")
    yield labelled("bias field", fixed, biased(moving), "brain")
    yield labelled("half of the moving image missing", fixed, half(moving), "brain")
    yield labelled("slices of 6 mm", fixed, sliced(moving), "brain")


def hippocampus_cases(data: Path) -> Iterator[Case]:
    """Yield pairs of neighbors of files 161-200."""
    files = sorted((data / "hippocampus" / "images").glob("*.nii.gz"))[160:200]
    images = [learnreg.read_image(file, labels=data / "hippocampus" / "labels" / file.name) for file in files]
    for fixed, moving in zip(images[::2], images[1::2], strict=True):
        yield labelled("hippocampus", fixed, moving, "deformable")


def heart_cases(data: Path) -> Iterator[Case]:
    """Yield end-diastole and end-systole."""
    for file in sorted((data / "cardiac").glob("*_ED.nii.gz")):
        fixed, moving = (
            learnreg.read_image(
                file.with_name(file.name.replace("_ED", f"_{phase}")),
                labels=file.with_name(file.name.replace("_ED", f"_{phase}_label")),
            )
            for phase in ("ED", "ES")
        )
        yield labelled("hearts", fixed, moving, "deformable")


def contrast_cases(data: Path) -> Iterator[Case]:
    """Yield T1 with T2 and with PD."""
    for contrast, seed in (("T2", 1), ("PD", 2)):
        yield replace(template_case(data, contrast, seed), group="T1 with T2 and PD, mm")


def template_case(data: Path, contrast: str, seed: int) -> Case:
    """Return T1 with another contrast, deformed by a known flow and turned; the error inside of the head is in mm."""
    folder = data / "multimodal"
    fixed = learnreg.read_image(folder / "spm_avg152T1.nii.gz")
    other = learnreg.read_image(folder / f"spm_avg152{contrast}.nii.gz")
    inside = fixed.data[0, 0] > 0.2 * fixed.data.max()
    points = fixed.grid.points[0][inside][None, ::50]
    coarse = other.grid.resized((24, 24, 24))
    flow = Velocity(4.0 * smooth_noise(Draws([seed], "cpu"), coarse, 3, torch.tensor([3.0])), coarse)
    seen = moved(warp(other, flow, other.grid), (8.0, -6.0, 5.0), (6.0, -5.0, 4.0))
    turn = Affine((seen.grid.affine.double() @ other.grid.affine.double().inverse()).to(seen.grid.affine))
    return Case(f"T1 with {contrast}, mm", fixed, seen, distance(points, chain(turn, flow.inverse())), "multimodal")


def distance(points: torch.Tensor, truth: Transform) -> Callable[[Transform], float]:
    """Return the mean distance of a transform from the truth at points, mm."""

    def error(transform: Transform) -> float:
        return float((transform(points) - truth(points)).norm(dim=-1).mean())

    return error


def lung_cases(data: Path) -> Iterator[Case]:
    """Yield a CT of the chest and itself under large known flows; the error inside of the lungs is in mm."""
    folder = data / "lung" / "elastix"
    image = learnreg.read_image(folder / "3DCT_lung.mha")
    fixed = image.with_data(image.data - image.data.min())  # air is 0, as what lies outside
    inside = learnreg.read_image(folder / "3DCT_lung_baseline_mask.mha").data[0, 0] > 0
    points, coarse = fixed.grid.points[0][inside][None, ::50], fixed.grid.resized((24, 24, 24))
    for seed in (1, 2):
        flow = Velocity(15.0 * smooth_noise(Draws([seed], "cpu"), coarse, 3, torch.tensor([5.0])), coarse)
        moving = warp(fixed, flow, fixed.grid)
        yield Case("CT of the lungs, mm", fixed, moving, distance(points, flow.inverse()), "lung")


def plane_cases(data: Path) -> Iterator[Case]:
    """Yield X-rays of hands, stained sections, whose errors at landmarks are in pixels, and CT with PET."""
    hands, sections = data / "2d" / "fair", data / "2d" / "histology"
    fixed, moving = (flat(hands / name, 1) for name in ("hands-R.jpg", "hands-T.jpg"))
    rows = torch.from_numpy(np.loadtxt(hands / "hands_landmarks.csv", delimiter=",", skiprows=1)).float()
    pixels = rows.reshape(-1, 2, 2) * torch.tensor([1 / 20, -1 / 25]) * 128 + torch.tensor([-0.5, 127.5])
    yield marked("hands, px", fixed, moving, pixels[:, 1], pixels[:, 0])
    names = ("Izd2-29-041-w35_HE", "Izd2-29-041-w35_proSPC")
    fixed, moving = (flat(sections / f"{name}.jpg", 4) for name in names)
    tables = [np.loadtxt(sections / f"{name}.csv", delimiter=",", skiprows=1)[:78, 1:] for name in names]
    yield marked("stains, px", fixed, moving, *((torch.from_numpy(t).float() + 0.5) / 4 - 0.5 for t in tables))
    fixed, moving = (outlined(flat(hands / f"PET-CT-{name}.jpg", 1)) for name in ("CT", "PET"))
    yield labelled("CT with PET, Dice of the body", fixed, moving, "multimodal")


def outlined(image: Image, threshold: float = 20.0) -> Image:
    """Label the body in a sagittal slice: all between the first and the last bright pixel of each row."""
    bright = torch.from_numpy(median_filter(image.data[0, 0].numpy(), 5)) > threshold
    body = (bright.int().cummax(1).values * bright.int().flip(1).cummax(1).values.flip(1)).long()
    return replace(image, labels=body[None, None])


def flat(file: Path, factor: int) -> Image:
    """Read a picture in gray, reduced by a factor, in pixels of size 1."""
    colors = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))).float()
    gray = colors.mean(-1) if colors.ndim == 3 else colors
    data = torch.nn.functional.avg_pool2d(gray[None, None], factor)
    return Image(data, Grid.regular(tuple(data.shape[2:])))


def marked(group: str, fixed: Image, moving: Image, here: torch.Tensor, there: torch.Tensor) -> Case:
    """Return a case that is measured by landmarks in pixels."""
    ours, theirs = apply_affine(fixed.grid.affine, here[None]), apply_affine(moving.grid.affine, there[None])

    def error(transform: Transform) -> float:
        return float((transform(ours) - theirs).norm(dim=-1).mean())

    return Case(group, fixed, moving, error, "multimodal")


GROUPS = {
    "brains": brain_cases,
    "stress": stress_cases,
    "contrasts": contrast_cases,
    "hippocampus": hippocampus_cases,
    "hearts": heart_cases,
    "lungs": lung_cases,
    "planes": plane_cases,
}


def main() -> None:
    """Print a row per group: the means over its pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--checkpoint", default="universal")
    parser.add_argument("--refine", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="one-shot only: no refinement, no presets")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ["pairs", "n", "start", "one-shot", "folding %", "CPU s"]
    names += [] if options.alone else ["refined", "CPU s", "classical", "CPU s"]
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")
    for group in options.groups:
        rows: dict[str, list[list[float]]] = {}
        for case in tqdm(list(GROUPS[group](options.data)), desc=group, leave=False):
            found = measured(case, options.checkpoint, None if options.alone else options.refine)
            rows.setdefault(case.group, []).append(found)
        for name, values in rows.items():
            means = " | ".join(f"{value:.3f}" for value in torch.tensor(values).mean(0).tolist())
            print(f"| {name} | {len(values)} | {means} |", flush=True)


def measured(case: Case, checkpoint: str, refine: int | None) -> list[float]:
    """Return the measures and CPU times of a case; unless refine is None, also refined and by the preset."""
    once, seconds = registered(case, checkpoint=checkpoint)
    assert once.initial is not None  # noqa: S101 - the model has a start
    folds = 100 * float(folding_fraction(once.sampled.field, case.fixed.grid))
    found = [case.measure(once.initial), case.measure(once.transform), folds, seconds]
    for options in [] if refine is None else [{"checkpoint": checkpoint, "refine": refine}, {"method": case.classical}]:
        result, seconds = registered(case, **options)
        found += [case.measure(result.transform), seconds]
    return found


def registered(case: Case, **options: object) -> tuple[learnreg.Registration, float]:
    """Register a case; return the CPU time too."""
    began = time.process_time()
    found = learnreg.register(case.fixed, case.moving, progress=False, **options)  # type: ignore[arg-type]
    return found, time.process_time() - began


if __name__ == "__main__":
    main()
