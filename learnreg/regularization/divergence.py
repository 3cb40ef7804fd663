"""Divergence: the mean squared rate of volume change of a velocity."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, gradient
from learnreg.typing import FieldTensor, Scalar, Tensor


@full_precision
def divergence_loss(field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
    """Compute the mean of ``(div u)^2``, dimensionless for a displacement in mm.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, 0 for an incompressible flow.
    """
    divergence = gradient(field, grid).diagonal(dim1=1, dim2=2).sum(-1)
    return cell_mean(divergence.square().unsqueeze(1), weight).mean()


class Divergence(Regularizer):
    """Incompressibility of a velocity, see :func:`divergence_loss`."""

    def forward(self, field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
        return divergence_loss(field, grid, weight)
