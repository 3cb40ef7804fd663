"""Global normalized cross-correlation."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.similarity.masking import masked_mean, standardized
from learnreg.typing import ImageTensor, MaskTensor, Scalar


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
    with torch.autocast(warped.device.type, enabled=False):
        product = standardized(warped, mask) * standardized(fixed, mask)
        if mask is None:
            return 1 - product.mean()
        each = [
            masked_mean(p.unsqueeze(0), m.unsqueeze(0))
            for p, m in zip(product, mask.expand(len(product), *mask.shape[1:]), strict=True)
        ]
        return 1 - torch.stack(each).mean()


class NCC(nn.Module):
    """Global normalized cross-correlation, see :func:`ncc_loss`. For linearly related intensities."""

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return ncc_loss(warped, fixed, mask)
