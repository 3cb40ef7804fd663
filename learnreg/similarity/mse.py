"""Mean squared error."""

from __future__ import annotations

import torch.nn.functional as F

from learnreg.numerics import full_precision
from learnreg.similarity.base import Similarity
from learnreg.similarity.masking import masked_mean
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def mse_loss(warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
    """Compute the mean of ``(warped - fixed)^2`` over the mask, 0 for equal images.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Returns:
        A scalar, lower is better.
    """
    if mask is None:
        return F.mse_loss(
            warped, fixed.expand_as(warped), reduction="none"
        ).mean()  # keeps no difference for the gradient
    return masked_mean((warped - fixed).square(), mask)


class MSE(Similarity):
    """Mean squared error, see :func:`mse_loss`. For images of one intensity scale.

    Example:
        >>> float(MSE()(2 * torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))
        4.0
    """

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return mse_loss(warped, fixed, mask)
