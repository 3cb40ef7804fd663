"""Linear elasticity: the energy of a small deformation."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, gradient
from learnreg.typing import FieldTensor, Scalar, Tensor


@full_precision
def elasticity_loss(
    field: FieldTensor, grid: Grid, weight: Tensor | None = None, *, mu: float = 1.0, lam: float = 0.0
) -> Scalar:
    """Compute the mean of ``mu / 4 sum_ij (d_i u_j + d_j u_i)^2 + lam / 2 (div u)^2``, dimensionless for mm.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        mu: Shear modulus, resistance against change of shape.
        lam: Lame's first parameter, resistance against change of volume.

    Returns:
        A scalar, 0 for a translation and an infinitesimal rotation.

    Source:
        Broit, Optimal registration of deformed images, 1981; Modersitzki, Numerical methods for image registration,
        2004, section 9.
    """
    g = gradient(field, grid)
    strain = (g + g.transpose(1, 2)).square().sum((1, 2))
    divergence = g.diagonal(dim1=1, dim2=2).sum(-1).square()
    return cell_mean((mu / 4 * strain + lam / 2 * divergence).unsqueeze(1), weight).mean()


class Elasticity(Regularizer):
    """Linear elasticity, see :func:`elasticity_loss`."""

    def __init__(self, mu: float = 1.0, lam: float = 0.0) -> None:
        super().__init__()
        self.mu, self.lam = mu, lam

    def forward(self, field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
        return elasticity_loss(field, grid, weight, mu=self.mu, lam=self.lam)
