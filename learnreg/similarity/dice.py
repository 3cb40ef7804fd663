"""Soft Dice overlap of label maps or probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learnreg.numerics import full_precision
from learnreg.similarity.base import Similarity
from learnreg.typing import BroadcastImage, ImageTensor, LabelTensor, MaskTensor, Scalar


@full_precision
def dice_loss(warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
    """Compute ``1 - mean Dice`` of membership maps, over images and the channels that are not empty.

    ``Dice = 2 sum(w f) / (sum(w^2) + sum(f^2))``: 1 for equal maps, hard or soft.

    Args:
        warped: ``(B, K, *grid)``, memberships in [0, 1], one channel per label.
        fixed: ``(B, K, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Returns:
        A scalar in [0, 1], lower is better.

    Source:
        Milletari et al., V-Net, 3DV 2016, section 3.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 2]).reshape(1, 1, 2, 2)
        >>> maps = one_hot(labels, [1, 2])
        >>> float(dice_loss(maps, maps))
        0.0
    """
    weights = torch.ones_like(fixed) if mask is None else mask.to(fixed.dtype).expand_as(fixed)
    dims = list(range(2, fixed.ndim))
    total = (warped.square() * weights).sum(dims) + (fixed.square() * weights).sum(dims)
    present = ((fixed * weights).sum(dims) > 0).to(fixed.dtype)
    dice = 2 * (warped * fixed * weights).sum(dims) / total.clamp(min=1e-6)
    return 1 - (dice * present).sum() / present.sum().clamp(min=1)


def one_hot(labels: LabelTensor, values: Sequence[int], dtype: torch.dtype = torch.float32) -> ImageTensor:
    """Convert integer labels ``(B, 1, *grid)`` to memberships ``(B, len(values), *grid)``."""
    return torch.cat([labels == value for value in values], dim=1).to(dtype)


class Dice(Similarity):
    """Soft Dice, see :func:`dice_loss`; takes memberships, see :func:`one_hot`."""

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return dice_loss(warped, fixed, mask)
