"""Curvature: the mean squared Laplacian of a field."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, spacing_along
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def curvature_loss(field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
    """Compute the mean over the interior of ``sum_c (laplace u_c)^2``, in 1/mm^2 for a field in mm.

    An axis with fewer than 3 samples is ignored.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, lower is smoother; 0 for any affine displacement, and for other harmonic fields.

    Source:
        Fischer and Modersitzki, Curvature based image registration, J. Math. Imaging Vis. 2003.
    """
    axes = [axis for axis in range(grid.ndim) if grid.shape[axis] >= 3]
    laplacian = field.new_zeros(())
    for axis in axes:
        step = spacing_along(grid, axis).to(field).reshape(-1, *[1] * (field.ndim - 1))
        second = field.diff(n=2, dim=axis + 2) / step**2
        for other in axes:
            if other != axis:
                second = second.narrow(other + 2, 1, grid.shape[other] - 2)
        laplacian = laplacian + second
    return cell_mean(laplacian.square(), weight).mean() if axes else laplacian


class Curvature(Regularizer):
    """Second-order smoothness of the Laplacian, see :func:`curvature_loss`."""

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return curvature_loss(field, grid, weight)
