"""Pairs of real images with known verdicts, for scripts/verdict.py: right pairs, and pairs broken in ten ways."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from learnreg.data.preprocessing import onto_grid
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import read_image
from learnreg.smoothing import gaussian_smoothing
from learnreg.transforms import Displacement, Transform, align_centers

HALVES = ("calibration", "held-out")
SPACING = 4.0  # mm, of brains and lungs
SPM = ("spm_avg152T1", "spm_avg152T2", "spm_avg152PD", "spm_single_subj_T1")
SAME_SUBJECT = {
    "calibration": (
        ("itk_brain_slice/t1.mha", "itk_brain_slice/pd_rotated.mha"),
        ("fair/hands-R.jpg", "fair/hands-T.jpg"),
    ),
    "held-out": (
        ("fair/MRIhead-R.jpg", "fair/MRIhead-T.jpg"),
        ("fair/EPIslice-R.jpg", "fair/EPIslice-T.jpg"),
        ("fair/PET-CT-CT.jpg", "fair/PET-CT-PET.jpg"),
    ),
}
ORGANS = ("lung/elastix/3DCT_lung_baseline_small.mha", "lung/elastix/3DCT_lung.mha")
SCENES = ("2d/fair/hands-R.jpg", "2d/fair/hands-T.jpg", "2d/fair/PET-CT-CT.jpg", "2d/fair/PET-CT-PET.jpg")


@dataclass(frozen=True)
class Case:
    """A pair, its method, and whether it is right.

    Args:
        name: Unique.
        kind: ``"good"``, or how it is broken.
        half: ``"calibration"`` or ``"held-out"``.
        method: Preset, or ``"none"`` for a transform that no method found.
        fixed: File of the fixed image.
        moving: File of the moving image.
        seed: Of what is random.
    """

    name: str
    kind: str
    half: str
    method: str
    fixed: str
    moving: str
    seed: int


def all_cases(data: Path) -> list[Case]:
    """Return all cases in an order in which each part of the list is a sample of the whole."""
    cases = [case for half in HALVES for case in _Half(data, half).all()]
    random.Random(0).shuffle(cases)
    return cases


GOOD = (  # method, pairs of hippocampi, of slices, of brains per half
    ("fast", 60, 20, 20),
    ("affine", 15, 8, 6),
    ("deformable", 15, 6, 6),
)
BROKEN = (
    ("fast", 8, 4, 4),
    ("affine", 3, 2, 2),
    ("deformable", 3, 2, 2),
)
KINDS = ("other organ", "flipped", "turned", "noise", "tiny overlap", "spacing", "truncated")


class _Half:
    """Makes the cases of one half of the subjects."""

    def __init__(self, data: Path, half: str) -> None:
        self.data, self.half, self.number = data, half, 0
        self.chance = random.Random(HALVES.index(half) + 1)
        self.groups = [_subjects(data, folder, half) for folder in ("hippocampus", "2d/oasis_trt", "brain")]

    def case(self, kind: str, method: str, fixed: str, moving: str) -> Case:
        """Number a case."""
        self.number += 1
        name = f"{self.half}-{self.number:03d}-{kind.replace(' ', '-')}"
        return Case(name, kind, self.half, method, fixed, moving, self.number)

    def good(self) -> Iterator[Case]:
        """Make right pairs."""
        for method, *counts in GOOD:
            for files, count in zip(self.groups, counts, strict=True):
                for _ in range(count):
                    yield self.case("good", method, *self.chance.sample(files, 2))
        for _ in range(8):
            yield self.case("good, other contrast", "deformable", *self.chance.sample(self.groups[0], 2))
        yield from (self.case("good", "deformable", *pair) for pair in _special(self.half))

    def broken(self) -> Iterator[Case]:
        """Make broken pairs of the kinds that every method gets."""
        for kind in KINDS:
            for method, *counts in BROKEN:
                for files, count in zip(self.groups, counts, strict=True):
                    for _ in range(count):
                        fixed, moving = self.chance.sample(files, 2)
                        if kind == KINDS[0]:
                            moving = _other(self.data, files, self.groups, self.half, self.chance)
                        yield self.case(kind, method, fixed, moving)

    def others(self) -> Iterator[Case]:
        """Make broken pairs of the other kinds."""
        for files in self.groups:
            yield self.case("constant", "fast", *self.chance.sample(files, 2))
            for _ in range(6):
                yield self.case("diverged", "none", *self.chance.sample(files, 2))
        whole = (SPM[0], SPM[3]) if self.half == HALVES[0] else (SPM[3], SPM[0])
        for count, method in enumerate(("fast",) * 5 + ("deformable",) * 2 + ("affine",) * 2):
            brain, head = self.chance.choice(self.groups[2]), f"multimodal/{whole[count % 2]}.nii.gz"
            yield self.case("skull", method, *((brain, head) if count % 3 else (head, brain)))

    def all(self) -> list[Case]:
        """Make all cases."""
        return [*self.good(), *self.broken(), *self.others()]


def _subjects(data: Path, folder: str, half: str) -> list[str]:
    """Return the images of a half: the first or the last by name, since neighbors can be one person."""
    files = sorted(str(file.relative_to(data)) for file in (data / folder / "images").glob("*.nii.gz"))
    return files[: len(files) // 2] if half == HALVES[0] else files[len(files) // 2 :]


def _special(half: str) -> Iterator[tuple[str, str]]:
    """Return pairs of one subject or one space, of other contrast, or of two phases of a heart; both directions."""
    pairs = [tuple(f"2d/{name}" for name in pair) for pair in SAME_SUBJECT[half]]
    people = ("101",) if half == HALVES[0] else ("201", "301")
    pairs += [tuple(f"cardiac/SCD0000{person}_{phase}.nii.gz" for phase in ("ED", "ES")) for person in people]
    volumes = [(a, b) for k, a in enumerate(SPM) for b in SPM[:k]] if half == HALVES[0] else [("ms07_T1", "ms07_T2")]
    pairs += [tuple(f"multimodal/{name}.nii.gz" for name in pair) for pair in volumes]
    for first, second in pairs:
        yield first, second
        yield second, first


def _other(data: Path, files: list[str], groups: list[list[str]], half: str, chance: random.Random) -> str:
    """Return an image of another organ with the same number of dimensions."""
    if files is groups[1]:
        return SCENES[chance.randrange(2) + 2 * HALVES.index(half)]
    heart = "101" if half == HALVES[0] else "201"
    others = groups[2] if files is groups[0] else groups[0]
    return chance.choice([ORGANS[HALVES.index(half)], f"cardiac/SCD0000{heart}_ED.nii.gz", *chance.sample(others, 2)])


@lru_cache(maxsize=24)
def _read(path: str) -> Image:
    labels = Path(path.replace("images", "labels"))
    image = read_image(path, labels=labels if labels.exists() and "images" in path else None)
    if any(part in path for part in ("brain/images", "multimodal", "lung")):
        image = onto_grid(image, image.grid.with_spacing(SPACING))
    return image


def images(case: Case, data: Path) -> tuple[Image, Image]:
    """Return the fixed and the moving image of a case, as a user would have given them."""
    fixed, moving = _read(str(data / case.fixed)), _read(str(data / case.moving))
    change = CHANGES.get(case.kind)
    return (fixed, moving) if change is None else change(fixed, moving, case.seed)


def wrong_transform(fixed: Image, moving: Image, seed: int) -> Transform:
    """Return a transform as of a registration that diverged: far, rough, or not finite."""
    generator = torch.Generator().manual_seed(seed)
    grid = fixed.grid
    field = torch.randn(1, grid.ndim, *grid.shape, generator=generator)
    size = float(grid.extent.mean())
    if seed % 3 == 0:
        field = gaussian_smoothing(field, grid, 0.08 * size)
        field = field * (0.15 * size / field.std())
    elif seed % 3 == 1:
        field = field * 0.02 * size
    else:
        field = torch.where(torch.arange(grid.shape[-1]) > grid.shape[-1] // 2, torch.nan, 0.0) + 0 * field
    start = align_centers(grid, moving.grid).displacement(grid)
    return Displacement(start + field, grid)


def _axis(seed: int, image: Image) -> int:
    return 2 + seed % image.ndim


def _flipped(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    return fixed, _changed(moving, lambda values: values.flip(-1))


def _turned(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    """Turn by 90 degrees in the plane of the last two axes; the header stays, but for the order of the sizes."""
    turned = [
        None if v is None else torch.rot90(v, 1 if seed % 2 else -1, (-2, -1)).contiguous()
        for v in (moving.data, moving.labels)
    ]
    shape = tuple(turned[0].shape[2:])
    affine = moving.grid.affine.clone()
    new = Grid(shape, affine)
    affine[:, :-1, -1] += moving.grid.center - new.center
    return fixed, Image(turned[0], Grid(shape, affine), labels=turned[1])


def _noise(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    noise = torch.randn(moving.data.shape, generator=torch.Generator().manual_seed(seed))
    if seed % 2:
        noise = gaussian_smoothing(noise, moving.grid, 2 * float(moving.grid.spacing.min()))
    return fixed, Image(noise / noise.std() * 10 + 100, moving.grid, labels=moving.labels)


def _constant(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    return fixed, moving.with_data(torch.full_like(moving.data, 7.0))


def _apart(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    """Keep one end of the fixed, and the other end of the moving image: a tenth of the length is in common."""
    axis = _axis(seed, fixed)
    return _part(fixed, axis, 0.0, 0.5), _part(moving, axis, 0.4, 1.0)


def _part(image: Image, axis: int, begin: float, end: float) -> Image:
    length = image.data.shape[axis]
    first, shape = [0] * image.ndim, list(image.grid.shape)
    first[axis - 2] = round(begin * length)
    shape[axis - 2] = round(end * length) - first[axis - 2]
    kept = [
        None if v is None else v.narrow(axis, first[axis - 2], shape[axis - 2]).contiguous()
        for v in (image.data, image.labels)
    ]
    return Image(kept[0], image.grid.cropped(first, shape), labels=kept[1])


def _spacing(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    """Double or halve the spacing of one axis, or of all."""
    affine = moving.grid.affine.clone()
    factor = 2.0 if seed % 2 else 0.5
    axes = [seed % moving.ndim] if seed % 3 else list(range(moving.ndim))
    for axis in axes:
        affine[:, :-1, axis] *= factor
    return fixed, Image(moving.data, Grid(moving.grid.shape, affine), labels=moving.labels)


def _truncated(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    """Set half of the moving image to its lowest value, as after an interrupted transfer."""
    axis = _axis(seed, moving)
    length = moving.data.shape[axis]
    data = moving.data.clone()
    data.narrow(axis, length // 2, length - length // 2).fill_(float(data.min()))
    return fixed, moving.with_data(data)


def _other_contrast(fixed: Image, moving: Image, seed: int) -> tuple[Image, Image]:
    """Map the intensities of the moving image to those of an invented contrast, which is not monotonic."""
    low, high = (float(moving.data.quantile(q)) for q in (0.01, 0.99))
    t = ((moving.data - low) / (high - low)).clamp(0, 1)
    return fixed, moving.with_data((t * 4.0 + seed % 3).sin() + 0.5 * t)


def _changed(image: Image, change: Callable[[torch.Tensor], torch.Tensor]) -> Image:
    labels = None if image.labels is None else change(image.labels)
    return replace(image, data=change(image.data).contiguous(), labels=labels)


CHANGES = {
    "flipped": _flipped,
    "turned": _turned,
    "noise": _noise,
    "constant": _constant,
    "tiny overlap": _apart,
    "spacing": _spacing,
    "truncated": _truncated,
    "good, other contrast": _other_contrast,
}
