"""Linear interpolation, the only wrapper of ``torch.nn.functional.grid_sample``.

Values on a displaced grid are sampled by a kernel on CPUs. The custom function supports first-order gradients, by
autograd and ``torch.func.grad``; a second derivative, ``jvp`` and ``vmap`` raise torch's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.kernels import displaced
from learnreg.kernels.compiled import apply, fused, run
from learnreg.kernels.displaced import Placement
from learnreg.separable import Matrices, apply_separable, map_vectors
from learnreg.typing import MatrixTensor

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

    def joined(self, sampled: Tensor) -> Tensor:
        """``(parts, C, 1, 1, length)`` back to ``(1, C, total)``."""
        if self.parts == 1:
            return sampled
        return sampled.transpose(0, 1).flatten(1)[None, :, : self.total]


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
    placement = Placement(base.detach().to(field), linear, tuple(matrices), tuple(shape), mode == "nearest", zeros)
    sampled: Tensor = apply(_SampleDisplaced, values, field, placement)
    return sampled


class _SampleDisplaced(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, field: Tensor, placement: Placement) -> Tensor:
        if fused(values, field):
            return displaced.sample(values, field, placement)
        return _sampled_displaced(values, field, placement)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, field, ctx.placement = inputs
        ctx.save_for_backward(values, field)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, field = ctx.saved_tensors
        if fused(values, field):
            needed = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
            gradients = partial(displaced.gradients, placement=ctx.placement, needed=needed)
            return *run(gradients, values, field, outer), None
        pull_back = torch.func.vjp(partial(_sampled_displaced, placement=ctx.placement), values, field)[1]
        return *pull_back(outer), None


def _sampled_displaced(values: Tensor, field: Tensor, placement: Placement) -> Tensor:
    """The reference of :func:`learnreg.kernels.displaced.sample`."""
    ndim = field.shape[1]
    moved = apply_separable(field, placement.matrices)
    moved = moved if placement.linear is None else map_vectors(placement.linear, moved)
    axes = [torch.arange(n, dtype=field.dtype, device=field.device) for n in reversed(placement.shape)]
    for component, index in enumerate(axes):
        steps = placement.base[:, :ndim, component, None] * index
        moved = moved + steps.reshape(*steps.shape[:2], *[-1 if a + component == ndim - 1 else 1 for a in range(ndim)])
    points = (moved + placement.base[:, :ndim, ndim].reshape(-1, ndim, *[1] * ndim)).movedim(1, -1)
    sampled = interpolate(values, points, "nearest" if placement.nearest else "linear")
    return sampled * (points.abs().amax(dim=-1) <= 1).unsqueeze(1) if placement.zeros else sampled


def squared(field: Tensor, base: MatrixTensor) -> Tensor:
    """Compute the displacement of a map applied twice, ``u(x) + u(x + u(x))``.

    Outside the grid ``u`` has its border value.

    Args:
        field: ``(B, D, *grid)``, normalized coordinates.
        base: ``(1, D+1, D+1)``, index of the grid to normalized coordinates.

    Returns:
        ``(B, D, *grid)``, normalized coordinates.
    """
    return field + sample_displaced(field, field, base, field.shape[2:])
