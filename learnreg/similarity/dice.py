"""Soft Dice overlap of label maps or probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from learnreg.typing import ImageTensor, LabelTensor, MaskTensor, Scalar


def dice_loss(warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
    """``1 - mean Dice`` of membership maps, over images and the channels that are not empty.

    ``Dice = 2 sum(w f) / (sum(w^2) + sum(f^2))``: 1 for equal maps, hard or soft.

    Args:
        warped: ``(B, K, *grid)``, memberships in [0, 1], one channel a label.
        fixed: ``(B, K, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Source:
        Milletari et al., V-Net, 3DV 2016, section 3.
    """
    with torch.autocast(warped.device.type, enabled=False):
        w, f = (
            warped.float() if warped.dtype.itemsize < 4 else warped,
            fixed.to(torch.promote_types(fixed.dtype, torch.float32)),
        )
        weights = torch.ones_like(f) if mask is None else mask.to(f.dtype).expand_as(f)
        dims = list(range(2, f.ndim))
        total = (w * w * weights).sum(dims) + (f * f * weights).sum(dims)
        present = ((f * weights).sum(dims) > 0).to(f.dtype)
        dice = 2 * (w * f * weights).sum(dims) / total.clamp(min=1e-6)
        return 1 - (dice * present).sum() / present.sum().clamp(min=1)


def one_hot(labels: LabelTensor, values: Sequence[int], dtype: torch.dtype = torch.float32) -> ImageTensor:
    """``(B, 1, *grid)`` integers to ``(B, len(values), *grid)`` memberships."""
    return torch.cat([labels == value for value in values], dim=1).to(dtype)


class Dice(nn.Module):
    """Soft Dice, see :func:`dice_loss`; takes memberships, see :func:`one_hot`."""

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return dice_loss(warped, fixed, mask)
