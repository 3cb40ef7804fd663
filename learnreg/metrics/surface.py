"""Distances between the surfaces of label maps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.similarity.dice import one_hot
from learnreg.typing import LabelTensor


def hausdorff95(warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int]) -> Tensor:
    """95th percentile of the distance between the borders of each label, the larger direction.

    Args:
        warped: ``(B, 1, *grid.shape)``, integers.
        fixed: ``(B, 1, *grid.shape)``, integers.
        grid: Where both lie.
        labels: The values that count.

    Returns:
        ``(B, len(labels))``, mm, lower is better; NaN where one image lacks the label.

    Source:
        ``monai.metrics.compute_hausdorff_distance``.
    """
    from monai.metrics import compute_hausdorff_distance

    w, f = one_hot(warped, labels).cpu(), one_hot(fixed, labels).cpu()
    spacing = grid.spacing[0].flip(0).tolist()
    distance = torch.full((w.shape[0], len(labels)), float("nan"))
    both = (w.flatten(2).amax(-1) > 0) & (f.flatten(2).amax(-1) > 0)
    for b, k in both.nonzero().tolist():
        pair = (w[b : b + 1, k : k + 1], f[b : b + 1, k : k + 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI calls its own deprecated argument
            found = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
        distance[b, k] = found[0, 0]
    return distance
