"""Global normalized cross-correlation."""

from __future__ import annotations

from torch import nn

from learnreg.numerics import full_precision
from learnreg.similarity.masking import masked_mean, standardized, standardized_fixed
from learnreg.typing import ImageTensor, MaskTensor, Scalar


@full_precision
def ncc_loss(warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
    """``1 - Pearson correlation``, a mean over batch and channels.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Returns:
        A scalar in [0, 2]: 0 for ``warped = a fixed + b`` with ``a > 0``, 1 for no relation or a
        constant image.
    """
    return 1 - masked_mean(standardized(warped, mask) * standardized_fixed(fixed, mask), mask)


class NCC(nn.Module):
    """Global normalized cross-correlation, see :func:`ncc_loss`. For linearly related intensities."""

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return ncc_loss(warped, fixed, mask)
