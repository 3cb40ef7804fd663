"""Huber's loss: squared for small differences, absolute for large ones."""

from __future__ import annotations

import torch.nn.functional as F

from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.similarity.base import Similarity
from learnreg.similarity.masking import masked_mean
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def huber_loss(
    warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None, *, delta: float = 0.1
) -> Scalar:
    """Compute the mean over the mask of ``d^2 / 2`` for ``|d| <= delta``, else ``delta (|d| - delta / 2)``.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        delta: Difference above which the loss grows linearly, in units of the intensities.

    Returns:
        A scalar, lower is better, 0 for equal images.

    Raises:
        InputError: ``delta`` is not positive.

    Source:
        Huber, Robust estimation of a location parameter, Ann. Math. Statist. 1964.
    """
    if delta <= 0:
        raise InputError(f"huber_loss needs a positive delta, got {delta}.")
    return masked_mean(F.huber_loss(warped, fixed.expand_as(warped), reduction="none", delta=delta), mask)


class Huber(Similarity):
    """Huber's loss, see :func:`huber_loss`. Smooth near a match; outliers count less than with squares.

    Example:
        >>> float(Huber(delta=0.5)(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))
        0.375
    """

    def __init__(self, delta: float = 0.1) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return huber_loss(warped, fixed, mask, delta=self.delta)
