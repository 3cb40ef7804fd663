"""Separable linear operators: one small matrix per axis, applied by matrix products.

Box windows, Gaussians and changes of resolution have the form ``y = (K_z x K_y x K_x) x``. As matrix products they are
differentiable, need no padding rules, and are 3 to 20 times faster on a CPU than the same operator as a convolution or
a pooling (``scripts/benchmark.py pieces`` measures it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Matrices = Sequence[Tensor | None]
SLAB = {"cpu": 2**18}  # voxels at a time, so that what is made of them stays in a core's cache
LARGE_SLAB = 2**24  # on GPUs, where many small kernels cost more than they save


def apply_separable(values: Tensor, matrices: Matrices) -> Tensor:
    """Apply one matrix along each of the last axes, in float32 also under autocast.

    Args:
        values: ``(..., *shape)``.
        matrices: One ``(m, n)`` matrix per axis in array order, ``n`` the size of that axis; ``None`` leaves an axis
            unchanged.

    Returns:
        ``(..., *new_shape)`` with the ``m`` of each matrix.

    Example:
        >>> halve = average_matrix(4, 2)
        >>> apply_separable(torch.arange(4.0), [halve])
        tensor([0.5000, 2.5000])
    """
    with torch.autocast(values.device.type, enabled=False):
        for offset, matrix in enumerate(reversed(matrices)):
            if matrix is None:
                continue
            matrix = matrix.to(values)
            values = values @ matrix.T if offset == 0 else _along(values, matrix, offset)
    return values


def _along(values: Tensor, matrix: Tensor, offset: int) -> Tensor:
    """Apply ``matrix`` along the axis ``offset`` before the last, as one batched product."""
    axis = values.ndim - 1 - offset
    trailing = values.shape[axis + 1 :]
    flat = values.reshape(*values.shape[: axis + 1], -1)
    return (matrix @ flat).reshape(*values.shape[:axis], matrix.shape[0], *trailing)


def map_vectors(matrix: Tensor, field: Tensor) -> Tensor:
    """Multiply each vector of ``(B, D, ...)`` by a matrix ``(N, D, D)``.

    Diagonal matrices take a shortcut on the CPU.
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    if matrix.device.type == "cpu" and torch.equal(matrix, torch.diag_embed(diagonal)):
        return field * diagonal.reshape(*diagonal.shape, *[1] * (field.ndim - 2))
    return (matrix @ field.flatten(2)).reshape(-1, *field.shape[1:])


def slabs(shape: Sequence[int], batch: int, device: torch.device) -> Iterator[slice]:
    """Split the first axis of a volume into slabs that fit the cache.

    Work on a whole volume reads and writes memory at each step. A slab of coordinates or products stays in the cache
    until its result is complete, so nothing of full size is kept but the result.

    Args:
        shape: Of the volume.
        batch: Number of volumes that are processed together.
        device: Where they are processed; on GPUs slabs are larger.
    """
    rows = max(1, SLAB.get(device.type, LARGE_SLAB) // (batch * math.prod(shape[1:])))
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    rows = max(rows - rows % threads, min(threads, shape[0])) if rows < shape[0] else shape[0]
    for first in range(0, shape[0], rows):
        yield slice(first, min(first + rows, shape[0]))


def rows_of(matrix: Tensor | None, rows: slice) -> tuple[Tensor | None, slice]:
    """Return the rows of a matrix for a slab, without zero columns, and the samples that these rows read."""
    if matrix is None:
        return None, rows
    if matrix.device.type != "cpu" or rows.stop - rows.start == len(matrix):
        return matrix[rows], slice(None)
    used = matrix[rows].any(0).nonzero()
    reach = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
    return matrix[rows, reach], reach


@runtime_checkable
class _Placed(Protocol):
    def __call__(self, size: int, parameter: float, /, like: Tensor | None = None) -> Tensor: ...


def _placed(make: Callable[..., Tensor]) -> _Placed:
    """Cache a matrix per size, type and device; ``like`` sets the type and device."""

    @lru_cache(maxsize=128)
    def kept(size: int, parameter: float, dtype: torch.dtype, device: torch.device) -> Tensor:
        return make(size, parameter).to(device=device, dtype=dtype)

    @wraps(make)
    def placed(size: int, parameter: float, /, like: Tensor | None = None) -> Tensor:
        values = torch.empty(0) if like is None else like
        dtype = torch.promote_types(values.dtype, torch.float32)
        return kept(size, parameter, dtype, values.device)

    return placed


@_placed
def box_matrix(size: int, width: int) -> Tensor:
    """Return a ``(size, size)`` mean over ``width`` (odd) samples; at the border over the samples that exist."""
    index = torch.arange(size)
    window = ((index[:, None] - index[None]).abs() <= width // 2).double()
    return window / window.sum(1, keepdim=True)


@_placed
def gaussian_matrix(size: int, sigma: float) -> Tensor:
    """Return a ``(size, size)`` Gaussian average with ``sigma`` in samples; rows sum to 1, also at the border."""
    index = torch.arange(size, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((index[:, None] - index[None]) / max(sigma, 1e-6)) ** 2)
    weights[weights < 1e-9] = 0  # denormal products in float32 are very slow
    return weights / weights.sum(1, keepdim=True)


@_placed
def resize_matrix(size: int, new_size: int) -> Tensor:
    """Return a ``(new_size, size)`` linear interpolation between two samplings of one field of view.

    Equals ``torch.nn.functional.interpolate(mode="linear", align_corners=False)``.
    """
    centers = ((torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5).clamp(0, size - 1)
    distance = (centers[:, None] - torch.arange(size, dtype=torch.float64)[None]).abs()
    return (1 - distance).clamp(min=0)


@_placed
def average_matrix(size: int, new_size: int) -> Tensor:
    """Return a ``(new_size, size)`` mean over the cells that each sample of a coarser sampling covers."""
    edges = torch.arange(new_size + 1, dtype=torch.float64) * size / new_size
    cells = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    overlap = overlap.clamp(min=0)
    return overlap / overlap.sum(1, keepdim=True)


def spline_weights(t: Tensor, order: int) -> tuple[Tensor, ...]:
    """Return the ``order + 1`` B-splines at a position ``t`` in [0, 1] between their knots; they sum to 1."""
    s = 1 - t
    if order == 0:
        return (torch.ones_like(t),)
    if order == 1:
        return s, t
    if order == 2:
        return s * s / 2, 0.75 - (t - 0.5) ** 2, t * t / 2
    return s**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * s**2 + 3 * s**3) / 6, t**3 / 6


@_placed
def difference_matrix(size: int, spacing: float) -> Tensor:
    """Return a ``(size, size)`` derivative by central differences, one-sided at the border; 0 for a single sample."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    if size > 1:
        index = torch.arange(size)
        after, before = (index + 1).clamp(max=size - 1), (index - 1).clamp(min=0)
        width = (after - before).double() * spacing
        matrix[index, after] += 1 / width
        matrix[index, before] -= 1 / width
    return matrix
