"""Bending energy: the mean squared second derivatives of a field."""

from __future__ import annotations

from functools import partial

import torch

from learnreg.grid import Grid
from learnreg.kernels import penalties
from learnreg.kernels.compiled import fused, scored
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, spacing_along
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def bending_loss(field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
    """Compute the mean over the interior of ``sum_ij |d^2 u / dx_i dx_j|^2``, in 1/mm^2 for a field in mm.

    An axis with fewer than 3 samples is ignored.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, lower is smoother; 0 for any affine displacement.

    Source:
        Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 1999, eq. 8.
    """
    if fused(field, weight):
        shares = torch.stack([spacing_along(grid, axis) for axis in range(grid.ndim)]).square().reciprocal().to(field)
        return scored(field, partial(penalties.bending, shares=shares, weight=weight)).mean()
    total = field.new_zeros(())
    axes = [axis for axis in range(grid.ndim) if grid.shape[axis] >= 3]
    for axis in axes:
        step, along = spacing_along(grid, axis).to(field), field.diff(dim=axis + 2)
        total = total + (cell_mean(along.diff(dim=axis + 2).square(), weight) / step**4).mean()
        for other in axes[axes.index(axis) + 1 :]:
            square = along.diff(dim=other + 2).square()
            total = total + 2 * (cell_mean(square, weight) / (step * spacing_along(grid, other).to(field)) ** 2).mean()
    return total


class Bending(Regularizer):
    """Second-order smoothness, see :func:`bending_loss`. Affine maps are not penalized.

    Example:
        >>> grid = learnreg.Grid.regular((6, 6, 6))
        >>> float(Bending()(0.1 * grid.points.movedim(-1, 1), grid)) < 1e-8
        True
    """

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return bending_loss(field, grid, weight)
