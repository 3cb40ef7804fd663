"""Folding: how far below a margin the Jacobian determinant falls."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, corner_determinants
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def folding_loss(
    displacement: FieldTensor, grid: Grid, weight: WeightTensor | None = None, *, margin: float = 0.0
) -> Scalar:
    """Mean over the corners of all cells of ``max(margin - det d(x + u)/dx, 0)``, dimensionless.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm; of a velocity it means nothing.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        margin: Determinants below it are penalized.

    Returns:
        A scalar, 0 where nothing folds.

    Source:
        Mok and Chung, Fast symmetric diffeomorphic image registration with convolutional neural
        networks, CVPR 2020, eq. 6.
    """
    short = (margin - corner_determinants(displacement, grid)).clamp(min=0)
    return cell_mean(short.mean(1, keepdim=True), weight).mean()


class Folding(Regularizer):
    """Negative Jacobian determinants, see :func:`folding_loss`; for a penalty on the displacement."""

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return folding_loss(field, grid, weight, margin=self.margin)
