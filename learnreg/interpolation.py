"""Linear interpolation: the only caller of torch's sampler, and of its gradient.

What happens at every voxel of a volume is done slab by slab. A slab's coordinates stay in the cache
and are computed again for the gradient, so that nothing of full size is kept but the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.separable import Matrices, apply_separable, map_vectors, rows_of, slabs
from learnreg.typing import MatrixTensor

LINEAR, BORDER = 0, 1  # torch's numbers
Mode = Literal["linear", "nearest"]


def interpolate(values: Tensor, coordinates: Tensor, mode: Mode = "linear") -> Tensor:
    """``grid_sample`` for points of any shape, with the depth cut over the CPU's threads.

    Args:
        values: ``(B, C, *grid)``.
        coordinates: ``(B, *P, D)``, normalized to [-1, 1] over the field of view; a batch of 1 on
            either side is broadcast.
        mode: ``"linear"`` or ``"nearest"``; beyond the border its value.
    """
    batch = max(values.shape[0], coordinates.shape[0])
    ndim = coordinates.shape[-1]
    shape = coordinates.shape[1:-1]
    values = values.expand(batch, *values.shape[1:])
    coordinates = coordinates.expand(batch, *coordinates.shape[1:])
    if len(shape) != ndim:
        coordinates = coordinates.reshape(batch, *([1] * (ndim - 1)), -1, ndim)
    values, coordinates = _over_threads(values, coordinates)
    name = "bilinear" if mode == "linear" else "nearest"  # torch's name in any dimension
    sampled = F.grid_sample(values, coordinates, mode=name, padding_mode="border", align_corners=False)
    return _whole(sampled, batch).reshape(batch, values.shape[1], *shape)


def _over_threads(values: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """One volume as a batch of its slabs, because torch's sampler threads over the batch alone."""
    parts = _thread_parts(coordinates)
    if parts == 1:
        return values, coordinates
    return values.expand(parts, *values.shape[1:]), coordinates.reshape(parts, -1, *coordinates.shape[2:])


def _whole(sampled: Tensor, batch: int) -> Tensor:
    """``(parts, C, depth / parts, ...)`` back to ``(1, C, depth, ...)``."""
    return sampled if len(sampled) == batch else sampled.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _thread_parts(coordinates: Tensor) -> int:
    """How many pieces to cut one volume into; 1 on a GPU, in a batch, in 2-D and for few points."""
    if coordinates.is_cuda or coordinates.shape[0] > 1 or coordinates.ndim != 5:
        return 1
    depth = coordinates.shape[1]
    if coordinates[0, ..., 0].numel() < 16384:
        return 1
    return max(n for n in range(1, torch.get_num_threads() + 1) if depth % n == 0)


def _interpolation_gradient(
    values: Tensor, coordinates: Tensor, outer: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of linear :func:`interpolate` for ``values`` and ``coordinates``, ``(B, *grid, D)``."""
    batch, channels = coordinates.shape[0], values.shape[1]
    own = values.shape[0]
    values = values.expand(batch, *values.shape[1:])
    values, pieces = _over_threads(values, coordinates)
    parts = len(pieces)
    if parts > batch:
        outer = outer.reshape(channels, parts, -1, *outer.shape[3:]).transpose(0, 1)
    backward = torch.ops.aten.grid_sampler_3d_backward if pieces.ndim == 5 else torch.ops.aten.grid_sampler_2d_backward
    for_values, for_points = backward(outer, values, pieces, LINEAR, BORDER, False, list(needed))
    if needed[0] and len(for_values) > own:
        for_values = for_values.sum(0, keepdim=True)
    return (for_values if needed[0] else None), (for_points.reshape(coordinates.shape) if needed[1] else None)


def sample_displaced(
    values: Tensor,
    field: Tensor,
    base: MatrixTensor,
    shape: Sequence[int],
    *,
    linear: Tensor | None = None,
    matrices: Matrices | None = None,
    mode: Mode = "linear",
    zeros: bool = False,
) -> Tensor:
    """``values(base(i) + L u(i))`` at each index ``i`` of a grid, where ``u`` is a field on a coarser one.

    Args:
        values: ``(B, C, *grid)``.
        field: ``(B, D, *lattice)``, displacements.
        base: ``(N, D+1, D+1)``, index of the grid to normalized coordinates of ``values``; no gradient.
        shape: Of the grid.
        linear: ``(N, D, D)``, displacements to normalized coordinates; no gradient. ``None`` is the identity.
        matrices: One an axis in array order, from the lattice to the grid; ``None`` where both agree.
        mode: ``"linear"``, or ``"nearest"``, which has no gradient.
        zeros: 0 outside the field of view; else the value at its border.

    Returns:
        ``(B, C, *shape)``.
    """
    matrices = [None] * len(shape) if matrices is None else [m if m is None else m.to(field) for m in matrices]
    linear = None if linear is None else linear.detach().to(field)
    placing = _Placing(base.detach().to(field), linear, matrices, tuple(shape))
    sampled: Tensor = _SampleDisplaced.apply(values, field, placing, mode, zeros)
    return sampled


@dataclass(frozen=True, eq=False)
class _Placing:
    """From a field to the coordinates of a slab, and back with their gradient."""

    base: Tensor
    linear: Tensor | None
    matrices: Matrices
    shape: tuple[int, ...]

    def points(self, field: Tensor, rows: slice, batch: int) -> Tensor:
        """``(B, rows, ..., D)`` normalized coordinates."""
        ndim = len(self.shape)
        first, reach = rows_of(self.matrices[0], rows)
        moved = apply_separable(field[:, :, reach], [first, *[None] * (ndim - 1)])  # a slab before all else
        if self.linear is not None:
            moved = map_vectors(self.linear, moved)
        moved = apply_separable(moved, [None, *self.matrices[1:]])
        last = self._steps(ndim - 1, slice(None))
        rest = self._steps(0, rows) + self.base[:, :ndim, ndim].reshape(-1, ndim, *[1] * ndim)
        for axis in range(1, ndim - 1):
            rest = rest + self._steps(axis, slice(None))
        moved = (moved + rest).add_(last)
        return moved.movedim(1, -1).expand(batch, *moved.shape[2:], ndim)

    def _steps(self, axis: int, part: slice) -> Tensor:
        """``(N, D, ..)`` what the index along an array axis adds to the coordinates."""
        ndim = len(self.shape)
        index = torch.arange(self.shape[axis], dtype=self.base.dtype, device=self.base.device)[part]
        steps = self.base[:, :ndim, ndim - 1 - axis].unsqueeze(-1) * index
        return steps.reshape(*steps.shape[:2], *[len(index) if a == axis else 1 for a in range(ndim)])

    def gradient(self, outer: Tensor, rows: slice) -> tuple[Tensor, slice]:
        """A slab's share of the gradient of the field, for that of the coordinates, and the rows it falls on."""
        back = apply_separable(outer.movedim(-1, 1), [None, *[m if m is None else m.T for m in self.matrices[1:]]])
        if self.linear is not None:
            back = map_vectors(self.linear.mT, back)
        first, reach = rows_of(self.matrices[0], rows)
        first = first if first is None else first.T
        return apply_separable(back, [first, *[None] * (len(self.shape) - 1)]), reach


class _SampleDisplaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, field: Tensor, placing: _Placing, mode: Mode, zeros: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, field)
        ctx.placing, ctx.zeros = placing, zeros
        batch = max(len(values), len(field), len(placing.base))
        sampled = values.new_empty(batch, values.shape[1], *placing.shape)
        for rows in slabs(placing.shape, batch, values.device):
            points = placing.points(field, rows, batch)
            part = interpolate(values, points, mode)
            sampled[:, :, rows] = part * _inside(points) if zeros else part
        return sampled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, field = ctx.saved_tensors
        placing = ctx.placing
        needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        batch = len(outer)
        for_values = None
        for_field = torch.zeros_like(field) if needed[1] else None
        whole = [slice(0, len(outer[0, 0]))]  # torch returns a gradient for all values at each call
        for rows in whole if needed[0] else slabs(placing.shape, batch, values.device):
            points = placing.points(field, rows, batch)
            part = outer[:, :, rows]
            part = part * _inside(points) if ctx.zeros else part
            for_values, moved = _interpolation_gradient(values, points, part, needed)
            if for_field is not None and moved is not None:
                back, reach = placing.gradient(moved, rows)
                for_field[:, :, reach] += back.sum(0, keepdim=True) if len(back) > len(for_field) else back
        return for_values, for_field, None, None, None


def squared(field: Tensor, base: MatrixTensor) -> Tensor:
    """Displacement of the map twice, ``u(x) + u(x + u(x))``; beyond the grid ``u`` has its border value.

    Args:
        field: ``(B, D, *grid)``, normalized coordinates.
        base: ``(1, D+1, D+1)``, index of the grid to normalized coordinates.
    """
    twice: Tensor = _Squared.apply(field, _Placing(base.to(field), None, [None] * field.shape[1], field.shape[2:]))
    return twice


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, placing: _Placing) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(field)
        ctx.placing = placing
        twice = torch.empty_like(field)
        for rows in slabs(placing.shape, len(field), field.device):
            points = placing.points(field, rows, len(field))
            torch.add(field[:, :, rows], interpolate(field, points), out=twice[:, :, rows])
        return twice

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (field,) = ctx.saved_tensors
        points = ctx.placing.points(field, slice(0, field.shape[2]), len(field))
        for_values, for_points = _interpolation_gradient(field, points, outer, (True, True))
        assert for_values is not None and for_points is not None  # noqa: S101 - both were asked for
        return for_values.add_(outer).add_(for_points.movedim(-1, 1)), None


def _inside(points: Tensor) -> Tensor:
    """``(B, 1, ...)`` whether points are in the field of view."""
    return (points.abs().amax(dim=-1) <= 1).unsqueeze(1)
