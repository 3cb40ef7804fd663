"""Diffusion: the mean squared gradient of a field."""

from __future__ import annotations

import math
from functools import partial

import torch

from learnreg.grid import Grid
from learnreg.kernels import penalties
from learnreg.kernels.compiled import fused, scored
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import at_cells, spacing_along
from learnreg.typing import FieldTensor, Scalar, Tensor, WeightTensor


@full_precision
def diffusion_loss(field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
    """Compute the mean over the grid of ``|grad u|^2``, dimensionless for a displacement in mm.

    The differences are divided by the spacing, so the value hardly changes when the field is resampled, and it does not
    depend on the orientation of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, lower is smoother; 0 for a translation.

    Source:
        Fischer and Modersitzki, Fast diffusion registration, 2002.

    Example:
        >>> grid = learnreg.Grid.regular((6, 6, 6))
        >>> round(float(diffusion_loss(0.1 * grid.points.movedim(-1, 1), grid)), 4)
        0.03
    """
    shares = torch.stack([spacing_along(grid, axis) for axis in range(grid.ndim)]).square().reciprocal().to(field)
    compute = penalties.diffusion if fused(field, weight) else _diffusion
    return scored(field, partial(compute, shares=shares, weight=weight)).mean()


def _diffusion(
    field: Tensor, needed: bool, *, shares: Tensor, weight: WeightTensor | None
) -> tuple[Tensor, Tensor | None]:
    """The reference of :func:`learnreg.kernels.penalties.diffusion`."""
    total = field.new_zeros(len(field))
    gradient = torch.zeros_like(field) if needed else None
    for axis, share in enumerate(shares, start=2):
        n = field.shape[axis]
        cells = [m - (a == axis) for a, m in enumerate(field.shape)]
        if n == 1:
            continue
        scale = (share / math.prod(cells[2:])).reshape(-1, *[1] * (field.ndim - 1))
        difference = field.diff(dim=axis)
        pull = difference * scale
        pull = pull if weight is None else pull * at_cells(weight.to(field.dtype), cells)
        total = total + difference.mul_(pull).flatten(1).sum(1)
        if gradient is not None:
            gradient.narrow(axis, 1, n - 1).add_(pull, alpha=2)
            gradient.narrow(axis, 0, n - 1).sub_(pull, alpha=2)
    return total, gradient


class Diffusion(Regularizer):
    """First-order smoothness, see :func:`diffusion_loss`. The usual choice for velocities."""

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return diffusion_loss(field, grid, weight)
