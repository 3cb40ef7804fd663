"""Sparsity: the mean length of the vectors of a field."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean
from learnreg.typing import FieldTensor, Scalar, Tensor


@full_precision
def sparsity_loss(field: FieldTensor, grid: Grid, weight: Tensor | None = None, *, floor: float = 1e-3) -> Scalar:
    """Compute the mean of ``sqrt(|u|^2 + e^2) - e``, the L1 norm of the vector lengths, in mm for a displacement.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        floor: ``e`` in mm, below which the energy is quadratic.

    Returns:
        A scalar, 0 for no displacement.
    """
    return cell_mean((field.square().sum(1, keepdim=True) + floor**2).sqrt() - floor, weight).mean()


class Sparsity(Regularizer):
    """L1 norm of the vectors, see :func:`sparsity_loss`. Few vectors differ from 0."""

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
        return sparsity_loss(field, grid, weight, floor=self.floor)
