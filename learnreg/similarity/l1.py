"""Mean absolute error."""

from __future__ import annotations

from learnreg.numerics import full_precision
from learnreg.similarity.base import Similarity
from learnreg.similarity.masking import masked_mean
from learnreg.typing import ImageTensor, MaskTensor, Scalar


@full_precision
def l1_loss(warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
    """Mean of ``|warped - fixed|`` over the mask, 0 for equal images.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
    """
    return masked_mean((warped - fixed).abs(), mask)


class L1(Similarity):
    """Mean absolute error, see :func:`l1_loss`. One intensity scale, with outliers such as lesions."""

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return l1_loss(warped, fixed, mask)
