"""Log-Jacobian: a penalty on change of volume, growth and shrinkage alike."""

from __future__ import annotations

import math

import torch

from learnreg.grid import Grid
from learnreg.kernels.compiled import fused, scored
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import cell_mean, corner_determinants, corner_penalty_on
from learnreg.typing import FieldTensor, Scalar, WeightTensor


@full_precision
def log_jacobian_loss(
    displacement: FieldTensor, grid: Grid, weight: WeightTensor | None = None, *, floor: float = 0.05
) -> Scalar:
    """Compute the mean over the corners of all cells of ``log(det d(x + u)/dx)^2``, dimensionless.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm. Not meaningful for a velocity.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.
        floor: Below it the logarithm continues as its tangent, so that folds have a gradient that opens them.

    Returns:
        A scalar, 0 where no volume changes, as in a rotation.

    Source:
        Rohlfing et al., Volume-preserving nonrigid registration of MR breast images using free-form deformation with an
        incompressibility constraint, IEEE TMI 2003. Differs in: squared.
    """
    if fused(displacement, weight):
        return scored(displacement, corner_penalty_on(grid, weight, bound=floor, logarithmic=True)).mean()
    det = corner_determinants(displacement, grid)
    log = torch.where(det > floor, det.clamp(min=floor).log(), math.log(floor) + (det - floor) / floor)
    return cell_mean(log.square().mean(1, keepdim=True), weight).mean()


class LogJacobian(Regularizer):
    """Penalty on change of volume, see :func:`log_jacobian_loss`; use it with ``Penalty(acts_on="displacement")``."""

    def __init__(self, floor: float = 0.05) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        return log_jacobian_loss(field, grid, weight, floor=self.floor)
