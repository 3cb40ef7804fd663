"""Mean absolute error."""

from __future__ import annotations

from learnreg.numerics import full_precision
from learnreg.similarity.base import Similarity
from learnreg.similarity.masking import masked_mean
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def l1_loss(warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
    """Compute the mean of ``|warped - fixed|`` over the mask, 0 for equal images.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Returns:
        A scalar, lower is better.
    """
    return masked_mean((warped - fixed).abs(), mask)


class L1(Similarity):
    """Mean absolute error, see :func:`l1_loss`. For one intensity scale, with outliers such as lesions.

    Example:
        >>> float(L1()(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))
        1.0
    """

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return l1_loss(warped, fixed, mask)
