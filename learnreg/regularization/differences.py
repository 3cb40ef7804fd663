"""Differences of a field in mm and means over cells, which the regularizers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.kernels.corners import corner_penalty
from learnreg.typing import FieldTensor, ScalarTensor


def cell_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average over the cells and sum over the components.

    Args:
        values: ``(B, K, *cells)``; an axis may have lost samples to differences, equally at both ends.
        weight: ``(B or 1, 1, *grid)``, factor at the samples; ``None`` is 1. A cell between two samples gets their
            mean.

    Returns:
        ``(B,)``.
    """
    if weight is not None:
        values = values * at_cells(weight.to(values.dtype), values.shape)
    return values.flatten(1).sum(1) / values[0, 0].numel()


def at_cells(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Convert factors at the samples ``(B, 1, *grid)`` to factors at the cells of ``(B, K, *cells)`` values."""
    for axis in range(2, len(shape)):
        n = shape[axis]
        lost = weight.shape[axis] - n
        weight = weight.narrow(axis, lost // 2, weight.shape[axis] - 2 * (lost // 2))
        if lost % 2:
            weight = (weight.narrow(axis, 1, n) + weight.narrow(axis, 0, n)) / 2
    return weight


def spacing_along(grid: Grid, axis: int) -> Tensor:
    """Return the spacing in mm along an array axis, ``(N,)``."""
    return grid.spacing.flip(1)[:, axis]


def gradient(field: FieldTensor, grid: Grid) -> Tensor:
    """Compute ``d u_i / d x_j`` along the physical axes by forward differences, which also see a checkerboard.

    Args:
        field: ``(B, D, *grid.shape)``.
        grid: Where it is sampled.

    Returns:
        ``(B, D, D, *cells)``: component, direction; one sample less along each axis with at least two.
    """
    ndim = grid.ndim
    first = [0] * ndim
    by_index = torch.stack([_in_corner(edge, first, axis) for axis, edge in _edges(field)], dim=2)
    to_index = grid.inverse_affine[:, :ndim, :ndim].to(field.dtype).expand(field.shape[0], -1, -1)
    return torch.einsum("bck...,bkl->bcl...", by_index, to_index)


def corner_determinants(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute ``det d(x + u)/dx`` in each corner of each cell, ``(B, 2^D, *cells)``.

    A map of a grid can fold in one corner while its neighbors and the mean of the cell do not show it. The determinant
    is the volume of the moved edges of a cell over the volume of the edges.

    Source:
        Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024.
    """
    ndim = grid.ndim
    sides = grid.affine[:, :ndim, :ndim].to(displacement.dtype)  # columns: the edges of a cell in mm
    moved = [
        (axis, edge + sides[:, :, ndim - 1 - axis].reshape(-1, ndim, *[1] * ndim))
        for axis, edge in _edges(displacement)
    ]
    corners = product((0, 1), repeat=ndim)
    volumes = [_volume([_in_corner(edge, corner, axis) for axis, edge in moved]) for corner in corners]
    return torch.stack(volumes, dim=1) / torch.linalg.det(sides).reshape(-1, *[1] * (ndim + 1))


def corner_penalty_on(
    grid: Grid, weight: Tensor | None, *, bound: float, logarithmic: bool
) -> Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]:
    """Return a penalty on :func:`corner_determinants` and its gradient, by a kernel, as a function of the displacement.

    Args:
        grid: Where the displacement is sampled.
        weight: Factor at the samples; ``None`` is 1.
        bound: See :func:`learnreg.kernels.corners.corner_penalty`.
        logarithmic: See :func:`learnreg.kernels.corners.corner_penalty`.
    """
    sides = grid.affine[:, : grid.ndim, : grid.ndim].to(torch.float32)
    return partial(corner_penalty, affine=sides, weight=weight, bound=bound, logarithmic=logarithmic)


def _edges(field: Tensor) -> list[tuple[int, Tensor]]:
    """Return the differences along ``x, y, z``, each with its array axis; 0 along an axis of one sample."""
    ndim = field.shape[1]
    axes = reversed(range(ndim))
    return [(a, field.diff(dim=a + 2) if field.shape[a + 2] > 1 else torch.zeros_like(field)) for a in axes]


def _in_corner(edge: Tensor, corner: Sequence[int], axis: int) -> Tensor:
    """Select the edges along ``axis`` that meet in the given corner of each cell."""
    for other, side in enumerate(corner):
        n = edge.shape[other + 2]
        if other != axis and n > 1:
            edge = edge.narrow(other + 2, side, n - 1)
    return edge


def _volume(edges: Sequence[Tensor]) -> ScalarTensor:
    """Compute the signed volume of ``D`` vectors ``(B, D, *cells)``."""
    if len(edges) == 2:
        a, b = (edge.unbind(1) for edge in edges)
        return a[0] * b[1] - a[1] * b[0]
    a, b, c = (edge.unbind(1) for edge in edges)
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
