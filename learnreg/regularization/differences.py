"""What the regularizers share: differences of a field in mm, and means over cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.typing import FieldTensor, ScalarTensor


def cell_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the cells, sum over the components.

    Args:
        values: ``(B, K, *cells)``; an axis may have lost samples to differences, equally at both ends.
        weight: ``(B or 1, 1, *grid)`` factor at the samples; ``None`` is 1. A cell between two
            samples gets the mean of theirs.

    Returns:
        ``(B,)``.
    """
    if weight is not None:
        weight = weight.to(values.dtype)
        for axis in range(2, values.ndim):
            lost = weight.shape[axis] - values.shape[axis]
            weight = weight.narrow(axis, lost // 2, weight.shape[axis] - 2 * (lost // 2))
            if lost % 2:
                weight = (
                    weight.narrow(axis, 1, weight.shape[axis] - 1) + weight.narrow(axis, 0, values.shape[axis])
                ) / 2
        values = values * weight
    return values.sum(1).flatten(1).mean(1)


def steps(field: FieldTensor, grid: Grid, axis: int, order: int = 1) -> Tensor:
    """Differences of ``order`` along an array axis of the grid, over the spacing: ``d^n u / ds^n``."""
    spacing = grid.spacing.flip(1)[:, axis].reshape(-1, *([1] * (field.ndim - 1)))
    return field.diff(n=order, dim=axis + 2) / spacing**order


def gradient(field: FieldTensor, grid: Grid, corner: Sequence[int] | None = None) -> Tensor:
    """``d u_i / d x_j`` along the physical axes, from the edges that meet in one corner of each cell.

    Unlike central differences they are not blind to a checkerboard.

    Args:
        field: ``(B, D, *grid.shape)``.
        grid: Where it is sampled.
        corner: 0 or 1 an array axis; ``None`` is the first corner, forward differences.

    Returns:
        ``(B, D, D, *cells)``: component, direction; one sample less along each axis that has two.
    """
    ndim = grid.ndim
    corner = corner or [0] * ndim
    cells = [max(n - 1, 1) for n in grid.shape]
    by_index = []
    for axis in reversed(range(ndim)):  # x, y, z
        along = field.diff(dim=axis + 2) if grid.shape[axis] > 1 else torch.zeros_like(field)
        for other, n in enumerate(cells):
            if other != axis:
                along = along.narrow(other + 2, corner[other] if grid.shape[other] > 1 else 0, n)
        by_index.append(along)
    to_index = grid.inverse_affine[:, :ndim, :ndim].to(field.dtype).expand(field.shape[0], -1, -1)
    return torch.einsum("bck...,bkl->bcl...", torch.stack(by_index, dim=2), to_index)


def corner_determinants(displacement: FieldTensor, grid: Grid) -> Tensor:
    """``det d(x + u)/dx`` in each corner of each cell, ``(B, 2^D, *cells)``.

    A map of a grid can fold in a corner whose neighbors, or whose mean, do not tell.

    Source:
        Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024.
    """
    corners = product((0, 1), repeat=grid.ndim)
    return torch.stack([determinant(gradient(displacement, grid, corner)) for corner in corners], dim=1)


def determinant(gradient: Tensor) -> ScalarTensor:
    """``det(I + du/dx)`` of ``(B, D, D, *cells)``."""
    ndim = gradient.shape[1]
    eye = torch.eye(ndim, dtype=gradient.dtype, device=gradient.device)
    j = gradient + eye.reshape(1, ndim, ndim, *([1] * (gradient.ndim - 3)))
    if ndim == 2:
        return j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]
    return (torch.linalg.cross(j[:, :, 0], j[:, :, 1], dim=1) * j[:, :, 2]).sum(1)
