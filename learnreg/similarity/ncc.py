"""Global normalized cross-correlation."""

from __future__ import annotations

from torch import Tensor

from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean, standardized
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def ncc_loss(
    warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None, *, known: Tensor | None = None
) -> Scalar:
    """Compute ``1 - Pearson correlation``, averaged over batch and channels.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        known: What :func:`learnreg.similarity.masking.standardized` returns for ``fixed``; ``None`` computes it.

    Returns:
        A scalar in [0, 2], lower is better: 0 for ``warped = a fixed + b`` with ``a > 0``, 1 for unrelated images or a
        constant image.

    Example:
        >>> image = torch.rand(1, 1, 8, 8, 8)
        >>> round(float(ncc_loss(3 * image + 1, image)), 4), round(float(ncc_loss(-image, image)), 4)
        (0.0, 2.0)
    """
    f = standardized(fixed, mask) if known is None else known
    return 1 - masked_mean(standardized(warped, mask) * f, mask)


class NCC(Similarity):
    """Global normalized cross-correlation, see :func:`ncc_loss`. For linearly related intensities."""

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return ncc_loss(warped, fixed, mask)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = standardized(fixed, mask)
        return lambda warped: ncc_loss(warped, fixed, mask, known=known)
