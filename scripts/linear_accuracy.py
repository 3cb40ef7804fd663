"""Accuracy of ``rigid`` and ``affine`` with a known truth: ``python scripts/linear_accuracy.py $LEARNREG_DATA``.

One image is moved by a known transform, resampled by SimpleITK from a larger volume, so that tissue continues beyond
both views. The error is the distance between the transform that was found and the truth over the body of the fixed
image. SimpleITK and elastix (``pip install -e '.[peers]'``) register the same images in the same run; without elastix,
or without a data folder, the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import peers
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from learnreg.image import Image
from learnreg.io import image_from_sitk
from learnreg.methods import Method, register
from learnreg.methods.presets import load_method

TARGET = 0.2  # mm or voxels, whichever is larger
DEGREES = (4.0, -5.0, 5.0)  # about x, y and z: 8 degrees in all
SHIFT = (5.0, -4.0, 3.0)  # mm, 7 in all


@dataclass(frozen=True)
class Pair:
    """Two images and the transform between them.

    Args:
        fixed: The reference.
        moving: The image to align.
        truth: Points of ``fixed`` to points of ``moving``, mm.
        body: Non-zero where the error counts, on the grid of ``fixed``.
        masks: Of ``fixed`` and ``moving``, non-zero where they count.
    """

    fixed: sitk.Image
    moving: sitk.Image
    truth: sitk.Transform
    body: NDArray[np.bool_]
    masks: tuple[sitk.Image, sitk.Image] | None = None


@dataclass(frozen=True)
class Result:
    """Errors of one tool on one case, mm, and wall time in s; a tool that stopped with an error has none."""

    case: str
    kind: str
    tool: str
    mean: float | None
    max: float | None
    tolerance: float
    seconds: float


# Views: images as a scanner that is moved would take them from a larger volume.


def box(source: sitk.Image, size: Sequence[int], spacing: Sequence[float], offset: Sequence[float] = ()) -> sitk.Image:
    """Return an empty image in the middle of ``source``, or ``offset`` mm from it along the axes of ``source``."""
    middle = np.array(source.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in source.GetSize()]))
    direction = np.array(source.GetDirection()).reshape(len(size), -1)
    half = (np.array(size) - 1) / 2 * np.array(spacing)
    image = sitk.Image(list(size), sitk.sitkFloat32)
    image.SetSpacing(list(spacing))
    image.SetDirection(source.GetDirection())
    image.SetOrigin((middle + direction @ ((np.array(offset) if len(offset) else 0) - half)).tolist())
    return image


def view(source: sitk.Image, where: sitk.Image, truth: sitk.Transform | None = None, outside: float = 0) -> sitk.Image:
    """Return what a scanner with the grid ``where`` sees of ``source`` moved by ``truth``.

    ``view(source, where, truth)`` at ``truth(x)`` is ``source`` at ``x``. Samples are Gaussian means as wide as the
    voxels, along the axes of ``where``.

    Args:
        source: The larger volume.
        where: Grid of the view.
        truth: Points of ``source`` to points of the view, mm; ``None`` is the identity.
        outside: Value beyond ``source``.
    """
    spacing = np.array(where.GetSpacing())
    fine = np.minimum(spacing, np.array(source.GetSpacing()))
    size = (np.ceil((np.array(where.GetSize()) + 4) * spacing / fine)).astype(int)
    inverse = sitk.Transform(where.GetDimension(), sitk.sitkIdentity) if truth is None else truth.GetInverse()
    image = sitk.Resample(source, box(where, size.tolist(), fine.tolist()), inverse, sitk.sitkLinear, outside)
    sigma = np.where(spacing > fine * 1.01, 0.4 * spacing / fine, 0)[::-1]
    smooth = like(gaussian_filter(values(image), sigma, mode="nearest"), image)
    return sitk.Resample(smooth, where, sitk.Transform(), sitk.sitkLinear, outside)


def values(image: sitk.Image) -> NDArray[np.float32]:
    """Intensities as an array."""
    return sitk.GetArrayFromImage(image).astype(np.float32)


def like(array: NDArray[np.generic], image: sitk.Image) -> sitk.Image:
    """Return ``array`` as an image on the grid of ``image``."""
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def motion(where: sitk.Image, degrees: Sequence[float], shift: Sequence[float]) -> sitk.Transform:
    """Return a rotation about the middle of ``where`` and a translation; in 2-D, ``degrees`` has one entry."""
    middle = where.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in where.GetSize()])
    angles = [math.radians(angle) for angle in degrees]
    if where.GetDimension() == 2:
        return sitk.Euler2DTransform(middle, *angles, shift)
    return sitk.Euler3DTransform(middle, *angles, shift)


def read(path: Path) -> sitk.Image:
    """Read an image as float32."""
    return sitk.ReadImage(str(path), sitk.sitkFloat32)


# Cases, each from a folder of images. Those of `SYNTHETIC` need none.


def synthetic(degrees: Sequence[float], shift: Sequence[float]) -> Pair:
    """Smooth noise, 40 mm of 72: both views are full of it to their borders."""
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((72, 72, 72)), 6)
    source = sitk.GetImageFromArray(((noise - noise.min()) / np.ptp(noise) * 1000).astype(np.float32))
    where = box(source, (40, 40, 40), (1, 1, 1))
    truth = motion(where, degrees, shift)
    return Pair(view(source, where), view(source, where, truth), truth, np.ones((40, 40, 40), bool))


def one_contrast(
    data: Path,
    size: Sequence[int],
    spacing: Sequence[float],
    *,
    fixed_box: tuple[Sequence[int], Sequence[float]] | None = None,
    moving_box: tuple[Sequence[int], Sequence[float]] | None = None,
    affine: bool = False,
) -> Pair:
    """A T1 brain, skull-stripped, and itself moved; ``*_box`` are the size and the offset in mm of a partial view."""
    source = read(data / "brain/images/1000.nii.gz")
    where = box(source, size, spacing)
    there = where if fixed_box is None else box(source, fixed_box[0], spacing, fixed_box[1])
    onto = where if moving_box is None else box(source, moving_box[0], spacing, moving_box[1])
    truth = motion(where, DEGREES, SHIFT)
    if affine:
        linear = sitk.AffineTransform(3)
        linear.SetCenter(truth.GetFixedParameters()[:3])
        linear.SetMatrix([1.06, 0.03, 0, 0, 0.95, 0.02, -0.03, 0, 1.04])
        truth = sitk.CompositeTransform([truth, linear])
    fixed = view(source, there)
    return Pair(fixed, view(source, onto, truth), truth, values(fixed) > 0.1 * values(fixed).max())


def two_contrasts(data: Path, fixed_name: str, moving_name: str) -> Pair:
    """Two aligned contrasts of ``multimodal/``, one of them moved, 3 mm."""
    source, other = (read(data / "multimodal" / f"{name}.nii.gz") for name in (fixed_name, moving_name))
    where = box(source, (56, 68, 56), (3, 3, 3))
    truth = motion(where, DEGREES, SHIFT)
    fixed = view(source, where)
    return Pair(fixed, view(other, where, truth), truth, values(fixed) > 0.1 * values(fixed).max())


def heart(data: Path) -> Pair:
    """A crop of a short-axis stack, 2 x 2 x 10 mm, moved in its plane, which leaves the slices as they are."""
    source = read(data / "cardiac/SCD0000101_ED.nii.gz")
    size, spacing = (64, 64, source.GetSize()[2]), (2, 2, source.GetSpacing()[2])
    where = box(source, size, spacing)
    middle = where.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    normal, first = np.array(where.GetDirection()).reshape(3, 3).T[[2, 0]]
    truth = sitk.VersorRigid3DTransform()
    truth.SetCenter(middle)
    truth.SetRotation(normal.tolist(), math.radians(8))
    truth.SetTranslation((8 * first).tolist())
    return Pair(view(source, where), view(source, where, truth), truth, np.ones(size[::-1], bool))


def chest(data: Path, *, outside: float) -> Pair:
    """A CT of the chest, 5 mm; -3024 fills what lies beyond the scanner's cylinder."""
    source = sitk.Clamp(read(data / "lung/elastix/3DCT_lung.mha"), lowerBound=-1024)
    where = box(source, (34, 44, 64), (5, 5, 5))
    truth = motion(where, DEGREES, SHIFT)
    pair = [view(source, where, t, -1024) for t in (None, truth)]
    body = values(pair[0]) > -500
    if outside < -1024:
        y, x = np.meshgrid(np.arange(44) - 21.5, np.arange(34) - 16.5, indexing="ij")
        beyond = np.broadcast_to(np.hypot(x, y) > 19, body.shape)
        pair = [like(np.where(beyond, np.float32(outside), values(image)), image) for image in pair]
        body &= ~beyond
    return Pair(*pair, truth, body)


def masked(data: Path) -> Pair:
    """A brain in front of bright clutter that does not move with it; masks say where the brain is."""
    pair = one_contrast(data, (56, 72, 56), (3, 3, 3))
    source = read(data / "brain/images/1000.nii.gz")
    clutter = gaussian_filter(np.random.default_rng(0).standard_normal(pair.body.shape), 3)
    clutter = 2000 * (clutter - clutter.min()) / np.ptp(clutter)
    pictures, masks = [], []
    for image, truth in ((pair.fixed, None), (pair.moving, pair.truth)):
        mask = values(view(sitk.Cast(source > 0, sitk.sitkFloat32), image, truth)) > 0.5
        pictures.append(like(np.where(mask, values(image), clutter).astype(np.float32), image))
        masks.append(like(mask.astype(np.uint8), image))
    return replace(pair, fixed=pictures[0], moving=pictures[1], masks=(masks[0], masks[1]))


def slices(data: Path, fixed_name: str, moving_name: str) -> Pair:
    """An axial slice of each contrast, 2 mm, one of them moved in its plane."""
    source, other = (read(data / "multimodal" / f"{name}.nii.gz")[:, :, 90] for name in (fixed_name, moving_name))
    where = box(source, (90, 108), (2, 2))
    truth = motion(where, (8,), (6, -6))
    fixed = view(source, where)
    return Pair(fixed, view(other, where, truth), truth, values(fixed) > 0.1 * values(fixed).max())


BRAIN = ((56, 72, 56), (3, 3, 3))
LEFT = ((28, 72, 56), (42.0, 0.0, 0.0))
SYNTHETIC: dict[str, Callable[[], Pair]] = {
    "tissue to the border, shift of 9 mm": partial(synthetic, (0, 0, 0), (6, -5, 4)),
    "tissue to the border, turn of 8 degrees": partial(synthetic, DEGREES, (2, -2, 1)),
}
REAL: dict[str, Callable[[Path], Pair]] = {
    "inside a brain": partial(one_contrast, size=(44, 56, 44), spacing=(2, 2, 2)),
    "half a brain onto the whole": partial(one_contrast, size=BRAIN[0], spacing=BRAIN[1], moving_box=LEFT),
    "a brain onto its half": partial(one_contrast, size=BRAIN[0], spacing=BRAIN[1], fixed_box=LEFT),
    "cropped cardiac stack, 10 mm slices": heart,
    "T1, T2": partial(two_contrasts, fixed_name="ms07_T1", moving_name="ms07_T2"),
    "T1, PD": partial(two_contrasts, fixed_name="spm_avg152T1", moving_name="spm_avg152PD"),
    "T2, PD": partial(two_contrasts, fixed_name="spm_avg152T2", moving_name="spm_avg152PD"),
    "CT, -1024 outside": partial(chest, outside=-1024),
    "CT, -3024 outside": partial(chest, outside=-3024),
    "masks, clutter outside": masked,
    "brain, 5 mm slices": partial(one_contrast, size=(82, 104, 34), spacing=(2, 2, 5)),
    "brain, also scaled and sheared": partial(one_contrast, size=BRAIN[0], spacing=BRAIN[1], affine=True),
    "2-D, T1": partial(slices, fixed_name="ms07_T1", moving_name="ms07_T1"),
    "2-D, T1 and T2": partial(slices, fixed_name="ms07_T1", moving_name="ms07_T2"),
}


def methods(names: Sequence[str]) -> dict[tuple[str, str], Method]:
    """Return the methods by kind and tool."""
    found: dict[tuple[str, str], Method] = {}
    for kind in names:
        found[kind, "learnreg"] = load_method(kind)
        found[kind, "SimpleITK"] = peers.SimpleItk(kind)
        if find_spec("itk") and find_spec("itk.elxParameterObjectPython"):
            found[kind, "elastix"] = peers.Elastix(kind)
    if not any(tool == "elastix" for _, tool in found):
        print("elastix is left out: pip install -e '.[peers]'")
    return found


def distances(pair: Pair, found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far points of the body are from where they belong, mm.

    Args:
        pair: The images and the truth.
        found: Displacements of all voxels of the fixed image, ``(*shape, D)``, mm.
    """
    index = np.argwhere(pair.body)
    points = [pair.fixed.TransformContinuousIndexToPhysicalPoint(i[::-1].astype(float).tolist()) for i in index]
    true = np.array([pair.truth.TransformPoint(point) for point in points])
    return np.linalg.norm(np.array(points) + found[pair.body] - true, axis=1)


def measure(case: str, pair: Pair, contestants: dict[tuple[str, str], Method]) -> list[Result]:
    """Register a pair with each method."""
    fixed, moving = image_from_sitk(pair.fixed), image_from_sitk(pair.moving)
    if pair.masks is not None:
        fixed, moving = (
            Image(image.data, image.grid, torch.from_numpy(sitk.GetArrayFromImage(mask))[None, None])
            for image, mask in zip((fixed, moving), pair.masks, strict=True)
        )
    tolerance = TARGET * max(1.0, min(pair.fixed.GetSpacing()))
    start = distances(pair, np.zeros((*pair.body.shape, pair.body.ndim)))
    results = [Result(case, "", "start", float(start.mean()), float(start.max()), tolerance, 0.0)]
    for (kind, tool), method in contestants.items():
        began = time.perf_counter()
        try:
            result = register(fixed, moving, method, progress=False)
        except RuntimeError as reason:  # of a peer: the images do not overlap any more
            tqdm.write(f"{tool}, {kind}, {case}: {str(reason).strip().splitlines()[-1]}")
            results.append(Result(case, kind, tool, None, None, tolerance, time.perf_counter() - began))
            continue
        seconds = time.perf_counter() - began
        displacement = result.transform.displacement(fixed.grid)[0].movedim(0, -1).double().numpy()
        error = distances(pair, displacement)
        results.append(Result(case, kind, tool, float(error.mean()), float(error.max()), tolerance, seconds))
    return results


def table(results: Sequence[Result]) -> str:
    """Format mean and largest errors as Markdown, one row per case."""
    columns = list(dict.fromkeys((r.kind, r.tool) for r in results if r.kind != "deformable"))
    cells = {
        (r.case, r.kind, r.tool): "failed" if r.mean is None or r.max is None else f"{r.mean:.2f} ({r.max:.2f})"
        for r in results
    }
    lines = ["| case | " + " | ".join(f"{kind} {tool}".strip() for kind, tool in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for case in dict.fromkeys(r.case for r in results):
        lines.append(f"| {case} | " + " | ".join(cells.get((case, *column), "") for column in columns) + " |")
    totals = [sum(r.seconds for r in results if (r.kind, r.tool) == column) for column in columns]
    lines.append("| seconds | " + " | ".join(f"{total:.0f}" for total in totals) + " |")
    lines += [f"\n{r.kind}, {r.case}: {cells[r.case, r.kind, r.tool]}" for r in results if r.kind == "deformable"]
    return "\n".join(lines)


def missed(results: Sequence[Result]) -> list[str]:
    """Return where learnreg exceeds the tolerance although a peer does not."""
    reached: dict[tuple[str, str], list[str]] = {}
    for r in results:
        if r.tool != "learnreg" and r.mean is not None and r.mean <= r.tolerance:
            reached.setdefault((r.case, r.kind), []).append(f"{r.tool} {r.mean:.2f}")
    return [
        f"{ours.kind}, {ours.case}: learnreg {'failed' if ours.mean is None else f'{ours.mean:.2f}'}, "
        f"{', '.join(reached[ours.case, ours.kind])}"
        for ours in results
        if ours.tool == "learnreg"
        and (ours.case, ours.kind) in reached
        and (ours.mean is None or ours.mean > ours.tolerance)
    ]


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Measure the chosen cases, print a table and return its entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="LEARNREG_DATA; without it, synthetic images only")
    parser.add_argument("--case", action="append", default=[], help="cases whose name has this in it")
    parser.add_argument("--kind", action="append", default=[], choices=("rigid", "affine"))
    parser.add_argument("--alone", action="store_true", help="learnreg's methods only")
    parser.add_argument("--output", type=Path, help="folder for linear_accuracy.md and linear_accuracy.json")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)
    cases = dict(SYNTHETIC)
    if options.data is None:
        print("real images are left out: give the folder LEARNREG_DATA")
    else:
        cases |= {name: partial(case, options.data) for name, case in REAL.items()}
    chosen = {n: c for n, c in cases.items() if not options.case or any(part in n for part in options.case)}
    if not chosen:
        raise SystemExit(f"No case has {' or '.join(options.case)} in its name; there are: {'; '.join(cases)}.")
    contestants = methods(options.kind or ("rigid", "affine"))
    if options.alone:
        contestants = {key: method for key, method in contestants.items() if key[1] == "learnreg"}
    results: list[Result] = []
    for number, (name, case) in enumerate(tqdm(chosen.items())):
        extra = {("deformable", "learnreg"): load_method("deformable")} if number == 0 else {}
        only = {key: m for key, m in contestants.items() if key[0] == "affine" or "scaled" not in name}
        results += measure(name, case(), only | extra)
    text = "\n".join(
        [table(results), "\nOut of tolerance, where a peer is not:\n", *(f"- {x}" for x in missed(results))]
    )
    print(f"mean (largest) error in mm, {options.threads} threads\n{text}")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "linear_accuracy.md").write_text(text + "\n")
        (options.output / "linear_accuracy.json").write_text(json.dumps([asdict(r) for r in results], indent=1))
    return results


if __name__ == "__main__":
    main()
