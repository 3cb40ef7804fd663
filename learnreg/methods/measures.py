"""Measures of a registration from which the verdict is made, without labels, landmarks or a second registration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from learnreg.data.preprocessing import normalized, without_padding
from learnreg.errors import InputError
from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image, with_field_of_view
from learnreg.methods.base import Registration
from learnreg.metrics import folding_fraction
from learnreg.numerics import full_precision
from learnreg.optimization.iterative import at_level
from learnreg.sampling import resize, sample_image
from learnreg.similarity import mutual_information_loss
from learnreg.similarity.windows import LocalAverage, local_moments
from learnreg.transforms.affine import linear_through_landmarks

SAMPLES = 2**16  # of the coarse grid on which everything is measured
CONTENT = 0.1  # brighter is content, in units of the image's range
TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images on coarse grids, in [0, 1], and where the transform takes the fixed grid.

    Args:
        fixed: The reference, with its field of view as its mask.
        moving: The image that was aligned, on a grid of its own.
        points: ``(1, *grid.shape, D)``, mm, positions in the moving image.
        displacement: ``(1, D, *grid.shape)``, mm.
    """

    fixed: Image
    moving: Image
    points: Tensor
    displacement: Tensor

    @staticmethod
    def of(result: Registration) -> Pair:
        """Prepare a registration whose displacement is finite."""
        fixed, moving = _coarse(result.fixed, "the fixed image"), _coarse(result.moving, "the moving image")
        displacement = resize(result.sampled.field, fixed.grid.shape).to(fixed.grid.dtype)
        points = fixed.grid.points + displacement.movedim(1, -1)
        return Pair(fixed, moving, points, displacement)

    def warped(self, points: Tensor | None = None) -> Image:
        """Return the moving image at ``points``, by default where the transform takes the fixed grid."""
        return sample_image(self.moving, self.points if points is None else points, self.fixed.grid)


def _coarse(image: Image, name: str) -> Image:
    """Return an image in [0, 1] with about :data:`SAMPLES` voxels and one channel."""
    bare = normalized(without_padding(Image(image.data, image.grid, image.mask)), name=name)
    bare = bare.with_data(bare.data.mean(1, keepdim=True))
    grid, factor = image.grid, 1.0
    while math.prod(grid.coarsened(factor, smallest=8).shape) > SAMPLES:
        factor *= 1.05
    return with_field_of_view(at_level(bare, factor))


@torch.no_grad()
@full_precision
def evidence(result: Registration) -> dict[str, float]:
    """Measure a registration on a coarse grid, without any truth.

    Args:
        result: The registration of one pair.

    Returns:
        The measures by name; ``{"finite": 0.0}`` alone if the transform has values that are not finite.

        * ``similarity``: mean squared correlation in small windows, whatever the contrasts, in [0, 1]; ``chance``: its
          highest value with the warped image flipped along one axis; ``start``: its value with the centers aligned.
        * ``information``, ``information_chance``: normalized mutual information minus 1, likewise.
        * ``correlation``: absolute correlation of the intensities.
        * ``outline``: Dice overlap of what is not background.
        * ``outside``: share of the fixed content that maps outside of the moving image.
        * ``lost``: share of the moving content that the warped image does not show.
        * ``rotation`` (degrees), ``largest_scale``, ``smallest_scale``, ``handedness`` (-1 for a reflection),
          ``shift``: of the affine map next to the transform; the shift of the centers is relative to the radius of the
          fixed content.
        * ``nonlinear``: RMS distance to that map, relative to the radius.
        * ``spread``: standard deviation of the log Jacobian determinant; ``folding``: share of determinants up to 0.
        * ``contents``: ratio of the contents' volumes, moving to fixed; ``volume``: after the affine map.
        * ``roughness``: how little neighboring voxels agree, of the rougher image; about 1 for noise.
        * ``cut``: largest drop of content from one plane to an empty next one, inside of an image, as a share of its
          fullest plane.

    Raises:
        InputError: An image is constant.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), grid)
        >>> measures = evidence(learnreg.Registration(learnreg.Affine.identity(2), image, image))
        >>> round(measures["correlation"], 3), round(measures["rotation"], 3), measures["folding"]
        (1.0, 0.0, 0.0)
    """
    if not bool(result.sampled.field.isfinite().all()):
        return {"finite": 0.0}
    pair = Pair.of(result)
    measures = {"finite": 1.0}
    measures |= _geometry(pair)
    measures |= _agreement(pair)
    measures["roughness"] = max(_roughness(pair.fixed), _roughness(pair.moving))
    measures["cut"] = max(_cut(pair.fixed), _cut(pair.moving))
    return measures


def _content(image: Image) -> Tensor:
    """Mark what is brighter than the background and seen, as 0 and 1."""
    content = (image.data > CONTENT).to(image.data.dtype)
    return content if image.mask is None else content * (image.mask > 0)


def _cell(grid: Grid) -> float:
    """Return the volume of a voxel."""
    return float(grid.spacing[0].prod())


def _geometry(pair: Pair) -> dict[str, float]:
    """Measure the transform and what it leaves outside."""
    grid, content = pair.fixed.grid, _content(pair.fixed)
    inside = content[0, 0].flatten() > 0
    inside = inside if int(inside.sum()) > 2 * grid.ndim else torch.ones_like(inside)
    x, y = (p.reshape(1, -1, grid.ndim)[:, inside] for p in (grid.points, pair.points))
    fit = linear_through_landmarks(x, y, "affine")
    linear = fit.matrix[0, : grid.ndim, : grid.ndim].double()
    left, scales, right = torch.linalg.svd(linear)
    radius = float((x - x.mean(1, keepdim=True)).square().sum(-1).mean().sqrt()) + TINY
    determinant = jacobian_determinant(pair.displacement, grid).unsqueeze(1)
    relative = (determinant.clamp(min=0.01) / max(float(scales.prod()), TINY)).log()
    moved, weight = _content(pair.moving), content
    amount = float(moved.sum()) * _cell(pair.moving.grid) + TINY
    view = Image(moved, pair.moving.grid, torch.ones_like(moved))
    seen = sample_image(view, pair.points, grid)
    assert seen.mask is not None  # noqa: S101 - the view has a mask
    shown = float((seen.data * determinant.clamp(min=0)).sum()) * _cell(grid) / amount
    own = float(content.sum()) * _cell(grid) + TINY
    center = _centroid(moved, pair.moving.grid)
    return {
        "rotation": _angle(left @ right),
        "handedness": float(torch.linalg.det(left @ right).sign()),
        "largest_scale": float(scales.max()),
        "smallest_scale": float(scales.min()),
        "shift": float((y.mean(1)[0] - center).norm()) / radius,
        "nonlinear": float((fit(x) - y).square().sum(-1).mean().sqrt()) / radius,
        "spread": _deviation(relative, weight),
        "folding": float(folding_fraction(pair.displacement, grid)),
        "outside": 1 - float((content * seen.mask).sum()) / (float(content.sum()) + TINY),
        "lost": max(0.0, 1 - shown),
        "contents": amount / own,
        "volume": amount / (own * max(float(scales.prod()), TINY)),
        "outline": 2 * float((content * seen.data).sum()) / float((content + seen.data).sum() + TINY),
    }


def _centroid(weights: Tensor, grid: Grid) -> Tensor:
    flat = weights.flatten()
    return (grid.points.reshape(-1, grid.ndim) * flat[:, None]).sum(0) / flat.sum().clamp(min=TINY)


def _deviation(values: Tensor, weights: Tensor) -> float:
    total = weights.sum().clamp(min=TINY)
    mean = (values * weights).sum() / total
    return float((((values - mean).square() * weights).sum() / total).sqrt())


def _angle(rotation: Tensor) -> float:
    """Return the angle of a rotation, degrees; that of the rotation part of a reflection."""
    rotation = rotation * torch.linalg.det(rotation).sign()
    trace = float(rotation.diagonal().sum())
    cosine = trace / 2 if len(rotation) == 2 else (trace - 1) / 2
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _agreement(pair: Pair) -> dict[str, float]:
    """Measure similarity, also with the warped image flipped and at the start."""
    fixed, warped = pair.fixed, pair.warped()
    flipped = [_flipped(warped, axis) for axis in range(2, warped.data.ndim) if warped.data.shape[axis] > 1]
    shift = _centroid(_content(pair.moving), pair.moving.grid) - _centroid(_content(fixed), fixed.grid)
    start = pair.warped(fixed.grid.points + shift)
    return {
        "similarity": local_similarity(fixed, warped),
        "chance": max(local_similarity(fixed, image) for image in flipped),
        "start": local_similarity(fixed, start),
        "information": _information(fixed, warped),
        "information_chance": max(_information(fixed, image) for image in flipped),
        "correlation": _correlation(fixed, warped),
    }


def _flipped(image: Image, axis: int) -> Image:
    assert image.mask is not None  # noqa: S101 - it has its field of view
    return replace(image, data=image.data.flip(axis), mask=image.mask.flip(axis))


def local_similarity(fixed: Image, warped: Image, *, window: int = 5) -> float:
    """Compute the mean squared correlation in windows over what either image shows, in [0, 1].

    Args:
        fixed: Intensities in [0, 1], with a mask.
        warped: Intensities in [0, 1], on the same grid, with a mask.
        window: Width of the windows, samples.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> image = learnreg.image.with_field_of_view(image)
        >>> round(local_similarity(image, image.with_data(1 - image.data)), 1)
        1.0
    """
    assert fixed.mask is not None and warped.mask is not None  # noqa: S101 - they have their fields of view
    used = fixed.mask * warped.mask
    counted = torch.maximum(_content(fixed), _content(warped)) * used
    if int((used > 0).sum()) < 2 or float(counted.sum()) < 1:
        return 0.0
    first, mean_f, var_f = local_moments(fixed.data, used, window, "box", 1)
    second, mean_w, var_w = local_moments(warped.data, used, window, "box", 1)
    covariance = LocalAverage(first, window, used)(first * second) - mean_f * mean_w
    squared = covariance.square() / ((var_f + 1e-2) * (var_w + 1e-2))
    return min(1.0, float((squared * counted).sum() / counted.sum()))


def _information(fixed: Image, warped: Image) -> float:
    """Compute the normalized mutual information minus 1."""
    assert fixed.mask is not None and warped.mask is not None  # noqa: S101 - they have their fields of view
    used = fixed.mask * warped.mask
    if int((used > 0).sum()) < 2:
        return 0.0
    return 1 - float(mutual_information_loss(warped.data, fixed.data, used, normalized=True))


def _correlation(fixed: Image, warped: Image) -> float:
    assert fixed.mask is not None and warped.mask is not None  # noqa: S101 - they have their fields of view
    used = (fixed.mask * warped.mask) > 0
    if int(used.sum()) < 3:
        return 0.0
    value = float(torch.corrcoef(torch.stack([fixed.data[used], warped.data[used]]))[0, 1])
    return abs(value) if value == value else 0.0


def _roughness(image: Image) -> float:
    """Return 1 minus the lowest correlation of an image with itself one voxel further along an axis."""
    lowest = 1.0
    for axis in range(2, image.data.ndim):
        n = image.data.shape[axis]
        if n < 3:
            continue
        a, b = image.data.narrow(axis, 0, n - 1).flatten(), image.data.narrow(axis, 1, n - 1).flatten()
        value = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        lowest = min(lowest, value if value == value else 1.0)
    return 1 - lowest


def _cut(image: Image) -> float:
    """Return the largest drop of content from a plane to an empty neighbor that is not at the border."""
    content, largest = _content(image)[0, 0], 0.0
    for axis in range(content.ndim):
        planes = content.mean([k for k in range(content.ndim) if k != axis]).tolist() if content.ndim > 1 else []
        fullest = max(planes, default=0.0)
        if fullest <= 0 or len(planes) < 4:
            continue
        drops = [abs(a - b) for a, b in pairwise(planes) if min(a, b) < 0.02 * fullest]
        largest = max(largest, max(drops, default=0.0) / fullest)
    return largest


def check_images(result: Registration) -> str | None:
    """Return why nothing can be measured, if an image is constant."""
    try:
        for name in ("fixed", "moving"):
            image: Image = getattr(result, name)
            normalized(Image(image.data, image.grid, image.mask), name=f"the {name} image")
    except InputError as error:
        return str(error)
    return None
