"""Total variation: piecewise smooth fields with jumps between the pieces, as where organs slide."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, gradient, spacing_along
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def total_variation_loss(
    field: FieldTensor,
    grid: Grid,
    weight: WeightTensor | None = None,
    *,
    isotropic: bool = True,
    floor: float = 1e-3,
) -> Scalar:
    """Compute the mean of ``sqrt(|grad u|^2 + e^2) - e``, or the sum of such terms along the axes of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        isotropic: ``True`` takes one norm of all derivatives; ``False`` adds the norms of the derivatives along each
            axis.
        floor: ``e``, below which the energy is quadratic; dimensionless.

    Returns:
        A scalar, 0 for a translation.

    Source:
        Rudin, Osher and Fatemi, Nonlinear total variation based noise removal, Physica D 1992; Vishnevskiy et al.,
        Isotropic total variation regularization of displacements, IEEE TMI 2017.
    """
    if isotropic:
        square = gradient(field, grid).square().sum((1, 2)).unsqueeze(1)
        return cell_mean((square + floor**2).sqrt() - floor, weight).mean()
    total = field.new_zeros(())
    for axis in range(grid.ndim):
        if grid.shape[axis] > 1:
            step = spacing_along(grid, axis).to(field).reshape(-1, *[1] * (field.ndim - 1))
            square = (field.diff(dim=axis + 2) / step).square().sum(1, keepdim=True)
            total = total + cell_mean((square + floor**2).sqrt() - floor, weight).mean()
    return total


class TotalVariation(Regularizer):
    """Total variation, see :func:`total_variation_loss`. For sliding organs."""

    def __init__(self, *, isotropic: bool = True, floor: float = 1e-3) -> None:
        super().__init__()
        self.isotropic, self.floor = isotropic, floor

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return total_variation_loss(field, grid, weight, isotropic=self.isotropic, floor=self.floor)
