"""Overlap of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.errors import InputError
from learnreg.typing import LabelTensor


def dice_scores(warped: LabelTensor, fixed: LabelTensor, labels: Sequence[int]) -> Float[Tensor, "B labels"]:
    """Compute the Dice overlap per label, ``2 |W and F| / (|W| + |F|)``.

    Args:
        warped: ``(B, 1, *grid)``, integers.
        fixed: ``(B, 1, *grid)``, integers.
        labels: Label values to score.

    Returns:
        ``(B, len(labels))`` in [0, 1], higher is better; NaN if both images lack the label.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> warped, fixed = torch.tensor([0, 1, 1]).reshape(1, 1, 3), torch.tensor([0, 0, 1]).reshape(1, 1, 3)
        >>> dice_scores(warped, fixed, [1])
        tensor([[0.6667]])
    """
    if warped.shape != fixed.shape:
        raise InputError(
            f"dice_scores needs label maps of one shape, got {tuple(warped.shape)} and {tuple(fixed.shape)}."
        )
    scores = []
    for label in labels:
        w, f = warped == label, fixed == label
        scores.append(2 * _counts(w & f) / (_counts(w) + _counts(f)))
    return torch.stack(scores, dim=1)


def _counts(masks: Tensor) -> Tensor:
    """Count the voxels of each mask; a sum would first convert them to int64."""
    return torch.stack([mask.count_nonzero() for mask in masks])
