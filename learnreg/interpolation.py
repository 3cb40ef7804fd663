"""Linear interpolation, the only wrapper of ``torch.nn.functional.grid_sample``.

Volumes are sampled slab by slab. The coordinates of a slab stay in the cache and are recomputed for the gradient, so
nothing of full size is kept but the result. The custom functions support first-order gradients, by autograd and
``torch.func.grad``; a second derivative, ``jvp`` and ``vmap`` raise torch's error.
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

MODES = {"linear": 0, "nearest": 1}  # torch's numbers
BORDER = 1
FEW_POINTS = 16384  # below, starting threads costs more than it saves
Mode = Literal["linear", "nearest"]


def interpolate(values: Tensor, coordinates: Tensor, mode: Mode = "linear") -> Tensor:
    """Interpolate values at points of any shape; on the CPU the points are divided among the threads.

    Args:
        values: ``(B, C, *grid)``.
        coordinates: ``(B, *P, D)``, normalized to [-1, 1] over the field of view; a batch of 1 on either side is
            broadcast.
        mode: ``"linear"`` or ``"nearest"``, which has no gradient for the coordinates. Points outside get the value at
            the border.

    Returns:
        ``(B, C, *P)``; NaN where a coordinate is NaN.
    """
    batch = max(values.shape[0], coordinates.shape[0])
    ndim = coordinates.shape[-1]
    shape = coordinates.shape[1:-1]
    values = values.expand(batch, *values.shape[1:])
    coordinates = coordinates.expand(batch, *coordinates.shape[1:])
    if len(shape) != ndim:
        coordinates = coordinates.reshape(batch, *([1] * (ndim - 1)), -1, ndim)
    coordinates, unknown = _without_nan(coordinates)
    cut = _Cut.of(coordinates)
    name = "bilinear" if mode == "linear" else "nearest"  # torch's name in any dimension
    sampled = F.grid_sample(
        cut.values(values), cut.points(coordinates), mode=name, padding_mode="border", align_corners=False
    )
    sampled = cut.joined(sampled).reshape(batch, values.shape[1], *shape)
    return sampled if unknown is None else sampled.masked_fill(unknown.reshape(batch, 1, *shape), torch.nan)


def _without_nan(coordinates: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replace NaN by 0, and return where it was, ``(B, *P)``; ``None`` if there is none.

    torch's CPU sampler reads outside of its memory at NaN coordinates, and the one for CUDA takes them for 0.
    """
    if coordinates.device.type == "cpu" and not bool(coordinates.detach().sum().isnan()):
        return coordinates, None  # one sum is much faster than a mask; on a GPU the host would wait for it
    unknown = coordinates.detach().isnan().any(-1)
    return coordinates.masked_fill(unknown.unsqueeze(-1), 0.0), unknown


@dataclass(frozen=True)
class _Cut:
    """The points of one volume as a batch of equal parts, because torch's CPU sampler threads over the batch alone.

    Args:
        parts: Number of parts; 1 leaves everything as it is.
        length: Points per part. The last part repeats the last point where the number of points does not divide.
        total: Number of points.
    """

    parts: int
    length: int
    total: int

    @staticmethod
    def of(coordinates: Tensor) -> _Cut:
        """Cut ``(B, *grid, D)`` coordinates over the threads; not on a GPU, in a batch, in 2-D, or for few points."""
        total = coordinates[0, ..., 0].numel()
        threads = torch.get_num_threads()
        if coordinates.is_cuda or coordinates.shape[0] > 1 or coordinates.ndim != 5 or total < FEW_POINTS:
            threads = 1
        return _Cut(threads, -(-total // threads), total)

    @property
    def _missing(self) -> int:
        return self.parts * self.length - self.total

    def values(self, values: Tensor) -> Tensor:
        """The same values for each part, without a copy."""
        return values if self.parts == 1 else values.expand(self.parts, *values.shape[1:])

    def points(self, coordinates: Tensor) -> Tensor:
        """``(1, *grid, D)`` to ``(parts, 1, 1, length, D)``; a copy only where the number does not divide."""
        if self.parts == 1:
            return coordinates
        flat = coordinates.reshape(self.total, -1)
        if self._missing:
            flat = torch.cat([flat, flat[-1:].expand(self._missing, -1)])
        return flat.reshape(self.parts, 1, 1, self.length, -1)

    def split(self, outer: Tensor) -> Tensor:
        """``(1, C, *grid)`` gradients of the sampled values to ``(parts, C, 1, 1, length)``, 0 for repeated points."""
        if self.parts == 1:
            return outer
        flat = F.pad(outer.reshape(outer.shape[1], self.total), (0, self._missing))
        return flat.reshape(len(flat), self.parts, 1, 1, self.length).transpose(0, 1)

    def joined(self, sampled: Tensor) -> Tensor:
        """``(parts, C, 1, 1, length)`` back to ``(1, C, total)``."""
        if self.parts == 1:
            return sampled
        return sampled.transpose(0, 1).flatten(1)[None, :, : self.total]


def _interpolation_gradient(
    values: Tensor, coordinates: Tensor, outer: Tensor, needed: tuple[bool, bool], mode: Mode = "linear"
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of :func:`interpolate` for ``values`` and for ``coordinates`` ``(B, *grid, D)``."""
    coordinates, _ = _without_nan(coordinates)
    batch, own = coordinates.shape[0], values.shape[0]
    cut = _Cut.of(coordinates)
    values = cut.values(values.expand(batch, *values.shape[1:]))
    pieces = cut.points(coordinates)
    backward = torch.ops.aten.grid_sampler_3d_backward if pieces.ndim == 5 else torch.ops.aten.grid_sampler_2d_backward
    for_values, for_points = backward(cut.split(outer), values, pieces, MODES[mode], BORDER, False, list(needed))
    if needed[0] and len(for_values) > own:
        for_values = for_values.sum(0, keepdim=True)
    if needed[1] and cut.parts > 1:
        for_points = for_points.reshape(cut.parts * cut.length, -1)[: cut.total]
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
    """Compute ``values(base(i) + L u(i))`` at each index ``i`` of a grid, where ``u`` is a field on a coarser lattice.

    Args:
        values: ``(B, C, *grid)``.
        field: ``(B, D, *lattice)``, displacements.
        base: ``(N, D+1, D+1)``, index of the grid to normalized coordinates of ``values``; has no gradient.
        shape: Of the grid.
        linear: ``(N, D, D)``, displacements to normalized coordinates; has no gradient. ``None`` is the identity.
        matrices: One matrix per axis in array order, from the lattice to the grid; ``None`` where both agree.
        mode: ``"linear"``, or ``"nearest"``, which has no gradient.
        zeros: If ``True``, return 0 outside the field of view, else the value at the border.

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
    """Map a field to the normalized coordinates of a slab, and a gradient of the coordinates back to the field."""

    base: Tensor
    linear: Tensor | None
    matrices: Matrices
    shape: tuple[int, ...]

    def points(self, field: Tensor, rows: slice, batch: int) -> Tensor:
        """Return the normalized coordinates ``(B, rows, ..., D)`` of a slab."""
        ndim = len(self.shape)
        first, reach = rows_of(self.matrices[0], rows)
        moved = apply_separable(field[:, :, reach], [first, *[None] * (ndim - 1)])
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
        """Return ``(N, D, ...)``, what the index along an array axis adds to the coordinates."""
        ndim = len(self.shape)
        index = torch.arange(self.shape[axis], dtype=self.base.dtype, device=self.base.device)[part]
        steps = self.base[:, :ndim, ndim - 1 - axis].unsqueeze(-1) * index
        return steps.reshape(*steps.shape[:2], *[len(index) if a == axis else 1 for a in range(ndim)])

    def gradient(self, outer: Tensor, rows: slice) -> tuple[Tensor, slice]:
        """Return the gradient of the field from one slab, and the rows of the field that it belongs to."""
        back = apply_separable(outer.movedim(-1, 1), [None, *[m if m is None else m.T for m in self.matrices[1:]]])
        if self.linear is not None:
            back = map_vectors(self.linear.mT, back)
        first, reach = rows_of(self.matrices[0], rows)
        first = first if first is None else first.T
        return apply_separable(back, [first, *[None] * (len(self.shape) - 1)]), reach


class _SampleDisplaced(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, field: Tensor, placing: _Placing, mode: Mode, zeros: bool) -> Tensor:
        batch = max(len(values), len(field), len(placing.base))
        sampled = values.new_empty(batch, values.shape[1], *placing.shape)
        for rows in slabs(placing.shape, batch, values.device):
            points = placing.points(field, rows, batch)
            part = interpolate(values, points, mode)
            sampled[:, :, rows] = part * _inside(points) if zeros else part
        return sampled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, field, ctx.placing, ctx.mode, ctx.zeros = inputs
        ctx.save_for_backward(values, field)

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
            for_values, moved = _interpolation_gradient(values, points, part, needed, ctx.mode)
            if for_field is not None and moved is not None:
                back, reach = placing.gradient(moved, rows)
                for_field[:, :, reach] += back.sum(0, keepdim=True) if len(back) > len(for_field) else back
        return for_values, for_field, None, None, None


def squared(field: Tensor, base: MatrixTensor) -> Tensor:
    """Compute the displacement of a map applied twice, ``u(x) + u(x + u(x))``.

    Outside the grid ``u`` has its border value.

    Args:
        field: ``(B, D, *grid)``, normalized coordinates.
        base: ``(1, D+1, D+1)``, index of the grid to normalized coordinates.

    Returns:
        ``(B, D, *grid)``, normalized coordinates.
    """
    twice: Tensor = _Squared.apply(field, _Placing(base.to(field), None, [None] * field.shape[1], field.shape[2:]))
    return twice


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(field: Tensor, placing: _Placing) -> Tensor:
        twice = torch.empty_like(field)
        for rows in slabs(placing.shape, len(field), field.device):
            points = placing.points(field, rows, len(field))
            torch.add(field[:, :, rows], interpolate(field, points), out=twice[:, :, rows])
        return twice

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        field, ctx.placing = inputs
        ctx.save_for_backward(field)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (field,) = ctx.saved_tensors
        points = ctx.placing.points(field, slice(0, field.shape[2]), len(field))
        for_values, for_points = _interpolation_gradient(field, points, outer, (True, True))
        assert for_values is not None and for_points is not None  # noqa: S101 - both are needed
        return for_values.add_(outer).add_(for_points.movedim(-1, 1)), None


def _inside(points: Tensor) -> Tensor:
    """Return ``(B, 1, ...)``, whether points lie in the field of view."""
    return (points.abs().amax(dim=-1) <= 1).unsqueeze(1)
