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
    """Compute the 95th percentile of the distance between the borders per label, the larger of both directions.

    Args:
        warped: ``(B, 1, *grid.shape)``, integers.
        fixed: ``(B, 1, *grid.shape)``, integers.
        grid: Where both lie.
        labels: Label values to score.

    Returns:
        ``(B, len(labels))``, mm, lower is better; NaN if one image lacks the label.

    Source:
        ``monai.metrics.compute_hausdorff_distance``.
    """
    from monai.metrics import compute_hausdorff_distance

    spacings = grid.spacing.flip(1).expand(len(warped), -1).tolist()
    distance = torch.full((warped.shape[0], len(labels)), float("nan"))
    for k, label in enumerate(labels):  # one label at a time: a hundred one-hot volumes do not fit
        w, f = (one_hot(maps.cpu(), [label]) for maps in (warped, fixed))
        for b in range(len(w)):
            pair = (w[b : b + 1], f[b : b + 1])
            if not (pair[0].any() and pair[1].any()):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # MONAI calls its own deprecated argument
                found = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacings[b])
            distance[b, k] = found[0, 0]
    return distance
