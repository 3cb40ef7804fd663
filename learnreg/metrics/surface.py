"""Distances between the surfaces of label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from learnreg.grid import Grid
from learnreg.typing import LabelTensor


def hausdorff95(warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int]) -> Tensor:
    """Compute the 95th percentile of the distance between the borders per label, the larger of both directions.

    The border of a label are its voxels with a face that is not shared with the label. It equals
    ``monai.metrics.compute_hausdorff_distance``, in the memory of the borders in place of that of distance maps.

    Args:
        warped: ``(B, 1, *grid.shape)``, integers.
        fixed: ``(B, 1, *grid.shape)``, integers.
        grid: Where both lie.
        labels: Label values to score.

    Returns:
        ``(B, len(labels))``, mm, lower is better; NaN if one image lacks the label.

    Example:
        >>> label = torch.zeros(1, 1, 8, 8, dtype=torch.long)
        >>> label[..., 2:5, 2:5] = 1
        >>> hausdorff95(label.roll(1, dims=-1), label, learnreg.Grid.regular((8, 8), spacing=2.0), [1])
        tensor([[2.]])
    """
    spacings = grid.spacing.flip(1).expand(len(warped), -1).double().cpu().numpy()
    distance = torch.full((warped.shape[0], len(labels)), float("nan"))
    for b, spacing in enumerate(spacings):
        surfaces = zip(*(_surfaces(maps[b, 0].cpu().numpy(), labels) for maps in (warped, fixed)), strict=True)
        for k, (first, second) in enumerate(surfaces):
            if len(first) and len(second):
                distance[b, k] = _percentile(first * spacing, second * spacing)
    return distance


def _percentile(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    pairs = (first, second), (second, first)
    return max(float(np.percentile(cKDTree(onto).query(points)[0], 95)) for points, onto in pairs)


def _surfaces(labels: NDArray[np.int64], values: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return the indices of the border voxels of each label, ``(N, D)``; none for a label that is missing."""
    ordered = np.sort(np.asarray(values))
    position = np.searchsorted(ordered, labels).clip(max=len(ordered) - 1).astype(np.int32)
    position = np.where(ordered[position] == labels, position + 1, 0)
    boxes = scipy.ndimage.find_objects(position, max_label=len(ordered))
    surfaces = []
    for value in values:
        box = boxes[np.searchsorted(ordered, value)]
        if box is None:
            surfaces.append(np.empty((0, labels.ndim), dtype=np.int64))
            continue
        mask = labels[box] == value
        border = mask & ~scipy.ndimage.binary_erosion(mask)
        surfaces.append(np.argwhere(border) + [part.start for part in box])
    return surfaces
