"""The scores of a transform: the one way in which training, evaluation and the command line measure.

:func:`agreement` compares with what is known of a pair, :func:`regularity` looks at the deformation alone, and
:func:`score` does both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image, label_values
from learnreg.metrics.deformation import folded_share, log_spread, log_spread_learn2reg
from learnreg.metrics.landmarks import target_registration_error
from learnreg.metrics.overlap import dice_scores
from learnreg.metrics.surface import hausdorff95
from learnreg.sampling import sample_labels
from learnreg.similarity import ncc_loss
from learnreg.transforms import Transform, sampled_on
from learnreg.typing import FieldTensor, PointTensor
from learnreg.warping import warp


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of each pair of a batch.

    Args:
        values: ``(B,)`` by name, NaN for a pair that lacks what is compared; a name that no pair has is left out.

            ``dice``: mean over the labels that the fixed and the moving image have, in [0, 1], higher is better.
            ``hd95_mm``: mean 95th percentile of the surface distance over the same labels, lower is better.
            ``tre_mm``: mean distance of the landmarks that are marked in both images, lower is better.
            ``error_mm``: mean distance to the true transform over the labels or the mask of the fixed image.
            ``ncc``: correlation of the intensities over the mask of the fixed image, in [-1, 1].
            ``sd_log_jacobian``, ``sd_log_jacobian_learn2reg``, ``folding_percent``: see :func:`regularity`.
        labels: For each pair, the labels that both of its images have, ascending.
        dice_by_label: For each pair, Dice of each of its labels.
    """

    values: dict[str, Tensor]
    labels: tuple[list[int], ...] = ()
    dice_by_label: tuple[Tensor, ...] = ()

    def row(self, pair: int = 0) -> dict[str, Any]:
        """Plain numbers of one pair, with ``dice_by_label``; what could not be measured is left out."""
        row: dict[str, Any] = {name: float(value[pair]) for name, value in self.values.items()}
        row = {name: value for name, value in row.items() if value == value}
        if "dice" in row:
            names = map(str, self.labels[pair])
            row["dice_by_label"] = dict(zip(names, self.dice_by_label[pair].tolist(), strict=True))
        return row

    def mean(self) -> dict[str, Tensor]:
        """Mean of each score over the pairs that have it."""
        return {name: value.nanmean() for name, value in self.values.items()}


@torch.no_grad()
def score(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    truth: Transform | None = None,
    distances: bool = False,
    correlation: bool = False,
) -> Scores:
    """Measure agreement and regularity; the transform is evaluated on the fixed grid once.

    Args:
        fixed: The reference, with labels, landmarks or a mask.
        moving: Before it is warped, with labels or landmarks.
        transform: Fixed to moving space, one or a batch.
        truth: The true transform.
        distances: Also measure those between the surfaces of labels, which takes long for many labels.
        correlation: Also correlate the intensities.

    Raises:
        InputError: There is not one landmark of the moving image for each of the fixed.
    """
    grid = fixed.grid
    transform = sampled_on(transform, grid)
    found = agreement(fixed, moving, transform, truth=truth, distances=distances, correlation=correlation)
    smoothness = regularity(transform.displacement(grid), grid)
    count = max(fixed.batch_size, moving.batch_size)
    smoothness = {name: value if len(value) > 1 else value.expand(count) for name, value in smoothness.items()}
    return replace(found, values=found.values | smoothness)


@torch.no_grad()
def agreement(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    truth: Transform | None = None,
    distances: bool = False,
    correlation: bool = False,
) -> Scores:
    """Compare with labels, landmarks, intensities and a true transform, where there are any; see :func:`score`."""
    transform = sampled_on(transform, fixed.grid)
    points = transform.map_grid(fixed.grid)
    count = max(fixed.batch_size, moving.batch_size, len(points))
    values: dict[str, Tensor] = {}
    if correlation:
        values["ncc"] = _correlation(fixed, moving, transform, count)
    if truth is not None:
        values["error_mm"] = _error(fixed, points, truth.map_grid(fixed.grid), count)
    if fixed.landmarks is not None and moving.landmarks is not None:
        values["tre_mm"] = target_registration_error(transform, fixed.landmarks, moving.landmarks).nanmean(1)
    if fixed.labels is None or moving.labels is None:
        return Scores(values)
    pairs = list(_each(count, fixed.labels, moving.labels))
    labels = tuple(label_values(*pair) for pair in pairs)
    if not any(labels):
        return Scores(values)
    warped = sample_labels(moving.labels, moving.grid, points)
    compared = list(zip(_each(count, warped, fixed.labels), labels, strict=True))
    dice = tuple(dice_scores(w, f, own)[0] if own else points.new_empty(0) for (w, f), own in compared)
    values["dice"] = torch.stack([scores.mean() for scores in dice])  # the mean of nothing is NaN
    if distances:
        values["hd95_mm"] = torch.stack(
            [hausdorff95(w, f, _only(fixed.grid, k), own).nanmean() for k, ((w, f), own) in enumerate(compared)]
        )
    return Scores(values, labels, dice)


@torch.no_grad()
def regularity(displacement: FieldTensor, grid: Grid) -> dict[str, Tensor]:
    """Measure how smooth a deformation is.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.

    Returns:
        ``(B,)`` by name: ``sd_log_jacobian``; ``folding_percent``, the share of voxels that fold, in percent; and
        ``sd_log_jacobian_learn2reg`` on grids of at least 5 samples along each axis. Lower is better for all.
    """
    determinant = jacobian_determinant(displacement, grid)
    values = {"sd_log_jacobian": log_spread(determinant)}
    if min(grid.shape) >= 5:
        values["sd_log_jacobian_learn2reg"] = log_spread_learn2reg(determinant)
    values["folding_percent"] = 100 * folded_share(determinant)
    return values


def _each(count: int, *batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The members of batches side by side, as batches of 1; a batch of 1 goes with every member of the others."""
    for k in range(count):
        yield tuple(batch if len(batch) == 1 else batch[k : k + 1] for batch in batches)


def _only(grid: Grid, k: int) -> Grid:
    """The grid of one member of a batch."""
    return grid if len(grid.affine) == 1 else Grid(grid.shape, grid.affine[k : k + 1])


def _correlation(fixed: Image, moving: Image, transform: Transform, count: int) -> Tensor:
    warped = warp(Image(moving.data, moving.grid), transform, fixed.grid).data
    batches = (warped, fixed.data) if fixed.mask is None else (warped, fixed.data, fixed.mask)
    return torch.stack([1 - ncc_loss(*pair) for pair in _each(count, *batches)])


def _error(fixed: Image, points: PointTensor, wanted: PointTensor, count: int) -> Tensor:
    """``(B,)`` mean distance to the truth, mm, over the labels or the mask of the fixed image."""
    distance = (points - wanted).norm(dim=-1)
    inside = fixed.labels if fixed.labels is not None else fixed.mask
    if inside is None:
        inside = torch.ones_like(distance[:1, None])
    pairs = _each(count, distance, inside)
    return torch.stack([d[i[:, 0] > 0].mean() for d, i in pairs])
