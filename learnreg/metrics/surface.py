"""Distances between the surfaces of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.typing import LabelTensor

Points: TypeAlias = NDArray[np.float64]


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
    return surface_scores(warped, fixed, grid, labels).hausdorff95


def average_surface_distance(warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int]) -> Tensor:
    """Compute the average symmetric surface distance (ASSD) per label: the mean over the borders of both.

    It equals ``monai.metrics.compute_average_surface_distance`` with ``symmetric=True``.

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
        >>> average_surface_distance(label, label, learnreg.Grid.regular((8, 8)), [1])
        tensor([[0.]])
    """
    return surface_scores(warped, fixed, grid, labels).average


def surface_dice(
    warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int], *, tolerance: float = 1.0
) -> Tensor:
    """Compute the normalized surface Dice (NSD) per label: the share of both borders that is within a tolerance.

    It equals ``monai.metrics.compute_surface_dice``, which counts border voxels.

    Args:
        warped: ``(B, 1, *grid.shape)``, integers.
        fixed: ``(B, 1, *grid.shape)``, integers.
        grid: Where both lie.
        labels: Label values to score.
        tolerance: Distance to the other border that counts as right, mm.

    Returns:
        ``(B, len(labels))`` in [0, 1], higher is better; 0 if one image lacks the label, NaN if both do.

    Raises:
        InputError: The tolerance is negative.

    Source:
        Nikolov et al., Clinically applicable segmentation of head and neck anatomy, JMIR 2021. Differs in: a border is
        its voxels, not their faces.

    Example:
        >>> label = torch.zeros(1, 1, 8, 8, dtype=torch.long)
        >>> label[..., 2:5, 2:5] = 1
        >>> surface_dice(label.roll(1, dims=-1), label, learnreg.Grid.regular((8, 8)), [1])
        tensor([[1.]])
    """
    if not tolerance >= 0:
        raise InputError(f"surface_dice needs a tolerance of at least 0 mm, got {tolerance}.")
    return surface_scores(warped, fixed, grid, labels, tolerance=tolerance).dice


@dataclass(frozen=True, eq=False)
class SurfaceScores:
    """Scores of the surfaces of labels, ``(B, labels)`` each.

    Args:
        hausdorff95: See :func:`hausdorff95`.
        average: See :func:`average_surface_distance`.
        dice: See :func:`surface_dice`.
    """

    hausdorff95: Tensor
    average: Tensor
    dice: Tensor


def surface_scores(
    warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int], *, tolerance: float = 1.0
) -> SurfaceScores:
    """Compute all scores of surfaces from one search for the nearest border voxels."""
    spacings = grid.spacing.flip(1).expand(len(warped), -1).double().cpu().numpy()
    largest, average, share = (torch.full((warped.shape[0], len(labels)), float("nan")) for _ in range(3))
    for b, spacing in enumerate(spacings):
        surfaces = zip(*(_surfaces(maps[b, 0].cpu().numpy(), labels) for maps in (warped, fixed)), strict=True)
        for k, (first, second) in enumerate(surfaces):
            if len(first) and len(second):
                there, back = _distances(first * spacing, second * spacing)
                largest[b, k] = max(float(np.percentile(d, 95)) for d in (there, back))
                both = np.concatenate([there, back])
                average[b, k], share[b, k] = float(both.mean()), float((both <= tolerance).mean())
            elif len(first) or len(second):
                share[b, k] = 0.0
    return SurfaceScores(largest, average, share)


def _distances(first: Points, second: Points) -> tuple[Points, Points]:
    """Return the distance of each point to the nearest one of the other set, for both sets."""
    from scipy.spatial import cKDTree

    return cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]


def _surfaces(labels: NDArray[np.int64], values: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return the indices of the border voxels of each label, ``(N, D)``; none for a label that is missing."""
    from scipy.ndimage import binary_erosion, find_objects

    ordered = np.sort(np.asarray(values))
    position = np.searchsorted(ordered, labels).clip(max=len(ordered) - 1).astype(np.int32)
    position = np.where(ordered[position] == labels, position + 1, 0)
    boxes = find_objects(position, max_label=len(ordered))
    surfaces = []
    for value in values:
        box = boxes[np.searchsorted(ordered, value)]
        if box is None:
            surfaces.append(np.empty((0, labels.ndim), dtype=np.int64))
            continue
        mask = labels[box] == value
        border = mask & ~binary_erosion(mask)
        surfaces.append(np.argwhere(border) + [part.start for part in box])
    return surfaces
