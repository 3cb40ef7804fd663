"""Folding: a penalty on Jacobian determinants below a margin."""

from __future__ import annotations

from learnreg.grid import Grid
from learnreg.kernels.compiled import fused, scored
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, corner_determinants, corner_penalty_on
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def folding_loss(
    displacement: FieldTensor, grid: Grid, weight: WeightTensor | None = None, *, margin: float = 0.0
) -> Scalar:
    """Compute the mean over the corners of all cells of ``max(margin - det d(x + u)/dx, 0)``, dimensionless.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm. Not meaningful for a velocity.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        margin: Determinants below it are penalized.

    Returns:
        A scalar, lower is better, 0 without folds.

    Source:
        Mok and Chung, Fast symmetric diffeomorphic image registration with convolutional neural networks, CVPR 2020,
        eq. 6.
    """
    if fused(displacement, weight):
        return scored(displacement, corner_penalty_on(grid, weight, bound=margin, logarithmic=False)).mean()
    short = (margin - corner_determinants(displacement, grid)).clamp(min=0)
    return cell_mean(short.mean(1, keepdim=True), weight).mean()


class Folding(Regularizer):
    """Penalty on folds, see :func:`folding_loss`; use it with ``Penalty(acts_on="displacement")``.

    Example:
        >>> grid = learnreg.Grid.regular((6, 6, 6))
        >>> float(Folding()(-2 * grid.points.movedim(-1, 1), grid)) > 0
        True
    """

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return folding_loss(field, grid, weight, margin=self.margin)
