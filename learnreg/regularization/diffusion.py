"""Diffusion: the mean squared gradient of a field."""

from __future__ import annotations

from torch import nn

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.differences import cell_mean, spacing_along
from learnreg.typing import FieldTensor, Scalar, Tensor


@full_precision
def diffusion_loss(field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
    """Mean over the grid of ``|grad u|^2``, dimensionless for a displacement in mm.

    Forward differences over the spacing: the value hardly changes when the field is resampled,
    and it does not depend on the orientation of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, 0 for a translation.

    Source:
        Fischer and Modersitzki, Fast diffusion registration, 2002.
    """
    total = field.new_zeros(())
    for axis in range(grid.ndim):
        if grid.shape[axis] > 1:
            square = field.diff(dim=axis + 2).square()
            total = total + (cell_mean(square, weight) / spacing_along(grid, axis) ** 2).mean()
    return total


class Diffusion(nn.Module):
    """First-order smoothness, see :func:`diffusion_loss`. The usual choice for velocities."""

    def forward(self, field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
        return diffusion_loss(field, grid, weight)
