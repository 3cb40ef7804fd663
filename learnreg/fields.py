"""Calculus on sampled vector fields: composition, exponential, inverse, derivatives.

Fields are ``(B, D, *grid.shape)`` in mm with components ``(x, y, z)``. Outside of the grid a field has its border
value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.grid import Grid, linear_map
from learnreg.interpolation import sample_displaced, squared
from learnreg.kernels import flow
from learnreg.kernels.compiled import apply, fused, fused_without_gradient, run
from learnreg.kernels.determinant import determinant
from learnreg.numerics import full_precision
from learnreg.sampling import sample
from learnreg.separable import apply_separable, difference_matrix
from learnreg.typing import BroadcastField, FieldTensor, ImageTensor, ScalarTensor

SLAB = 2**18  # voxels whose Jacobian matrices are held at once, unless a gradient is needed


def channels_last(field: FieldTensor) -> Float[Tensor, "B *grid D"]:
    """Move the components last: ``(B, D, *grid)`` to ``(B, *grid, D)``."""
    return field.movedim(1, -1)


def channels_first(points: Float[Tensor, "B *grid D"]) -> FieldTensor:
    """Move the components first: ``(B, *grid, D)`` to ``(B, D, *grid)``."""
    return points.movedim(-1, 1)


def compose(first: BroadcastField, second: BroadcastField, grid: Grid) -> BroadcastField:
    """Compose two displacements: ``first(x) + second(x + first(x))``, the map ``x -> second(first(x))``.

    Args:
        first: ``(B, D, *grid.shape)``, mm.
        second: ``(B, D, *grid.shape)``, mm.
        grid: Where both are sampled.
    """
    linear = grid.normalizing[:, : grid.ndim, : grid.ndim]
    return first + sample_displaced(second, first, grid.index_normalizing, grid.shape, linear=linear)


@full_precision
def exponential(velocity: FieldTensor, grid: Grid, *, steps: int = 4) -> FieldTensor:
    """Integrate a stationary velocity to time 1 by scaling and squaring.

    ``exp(v) = exp(w)^(2^n)`` with ``w = v / 2^n`` and ``exp(w) = id + w + (Dw) w / 2``. Each squaring interpolates, so
    fewer are more accurate: with the second-order term, 3 squarings are closer to the flow and to an inverse than 7
    without it (``scripts/benchmark.py flow`` measures it).

    Args:
        velocity: ``(B, D, *grid.shape)``, mm per unit time.
        grid: Where ``velocity`` is sampled.
        steps: Number of squarings ``n``.

    Returns:
        Displacement ``(B, D, *grid.shape)``, mm.

    Source:
        Arsigny et al., A Log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006. Differs in:
        second-order start; outside of the grid the velocity has its border value.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> constant = torch.ones(1, 3, 8, 8, 8)
        >>> torch.allclose(exponential(constant, grid), constant)
        True
    """
    if fused(velocity):
        ndim = grid.ndim
        to_index, to_mm = (m[:, :ndim, :ndim].detach().to(velocity) for m in (grid.inverse_affine, grid.affine))
        found: Tensor = apply(_Exponential, velocity, to_index, to_mm, steps)[0]
        return found
    w = linear_map(grid.normalizing, velocity) / 2**steps  # in normalized coordinates, along the index axes
    u = w + apply(_Advected, w) / 2
    for _ in range(steps):
        u = squared(u, grid.index_normalizing)
    return linear_map(grid.denormalizing, u)


class _Exponential(torch.autograd.Function):
    """:func:`exponential` by a kernel, with the fields between its steps, which are kept for the gradient."""

    @staticmethod
    def forward(velocity: Tensor, to_index: Tensor, to_mm: Tensor, steps: int) -> tuple[Tensor, ...]:
        return flow.exponential(velocity, to_index, to_mm, steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *matrices, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*matrices, *output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        found = None if outer is None else run(flow.gradient, outer, *ctx.saved_tensors)
        return found, None, None, None


class _Advected(torch.autograd.Function):
    """``(Dw) w`` of a field in normalized coordinates, by central differences.

    Only the field is kept for the gradient.
    """

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        total = torch.zeros_like(w)
        for component, matrices in enumerate(_derivatives(w)):
            total.addcmul_(apply_separable(w, matrices), w[:, component : component + 1])
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:  # type: ignore[override]
        (w,) = ctx.saved_tensors
        total = torch.zeros_like(w)
        for component, matrices in enumerate(_derivatives(w)):
            carrying = slice(component, component + 1)
            total[:, carrying] += (outer * apply_separable(w, matrices)).sum(1, keepdim=True)
            total += apply_separable(outer * w[:, carrying], [m if m is None else m.T for m in matrices])
        return total


def _derivatives(w: Tensor) -> Iterator[list[Tensor | None]]:
    """Yield the matrices of ``d / dx``, ``d / dy``, ``d / dz`` in normalized coordinates."""
    ndim = w.shape[1]
    for axis in reversed(range(ndim)):
        size = w.shape[axis + 2]
        matrices: list[Tensor | None] = [None] * ndim
        matrices[axis] = difference_matrix(size, 2 / size, w)
        yield matrices


def logarithm(
    displacement: FieldTensor, grid: Grid, *, steps: int = 4, iterations: int = 20, tolerance: float = 1e-3
) -> tuple[FieldTensor, Float[Tensor, "B"]]:
    """Find a stationary velocity whose exponential is near a displacement: ``v <- v + (exp(-v) then u)``.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm. Not every diffeomorphism has a logarithm.
        grid: Where it is sampled.
        steps: Number of squarings of the exponential.
        iterations: Maximum number of iterations; the best one is returned.
        tolerance: Stop when the residual is below this value, mm.

    Returns:
        The velocity, ``(B, D, *grid.shape)``, mm per unit time, and the residual ``max |exp(v)(x) - x - u(x)|``,
        ``(B,)``, mm.

    Source:
        Bossa et al., Contributions to 3D diffeomorphic atlas estimation, MICCAI 2007, with the first term of the
        Baker-Campbell-Hausdorff series.
    """
    velocity = best = displacement
    least: Tensor | None = None
    for _ in range(iterations):
        missed = exponential(velocity, grid, steps=steps) - displacement
        residual = missed.norm(dim=1).flatten(1).amax(1)
        better = torch.ones_like(residual, dtype=torch.bool) if least is None else residual < least
        best = torch.where(better.reshape(-1, *([1] * (grid.ndim + 1))), velocity, best)
        least = residual if least is None else torch.minimum(least, residual)
        if bool((least <= tolerance).all()):
            break
        velocity = velocity + compose(exponential(-velocity, grid, steps=steps), displacement, grid)
    assert least is not None  # noqa: S101 - there is at least one iteration
    return best, least


def invert(
    displacement: FieldTensor, grid: Grid, *, iterations: int = 50, tolerance: float = 1e-3
) -> tuple[FieldTensor, Float[Tensor, "B"]]:
    """Invert a displacement by the fixed point ``v(x) = -u(x + v(x))``.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm; the iteration converges where ``u`` is a contraction.
        grid: Where it is sampled, and where the inverse is returned.
        iterations: Maximum number of iterations.
        tolerance: Stop when no vector changes by more than this value, mm.

    Returns:
        The inverse displacement, ``(B, D, *grid.shape)``, and the residual ``max |v(x) + u(x + v(x))|``, ``(B,)``, mm.

    Source:
        Chen et al., A simple fixed-point approach to invert a deformation field, Med. Phys. 2008.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> inverse, residual = invert(torch.full((1, 3, 8, 8, 8), 0.5), grid)
        >>> float(inverse.max()), float(residual) < 1e-5
        (-0.5, True)
    """
    inverse = -displacement
    for _ in range(iterations):
        update = -sample(displacement, grid, grid.points + channels_last(inverse), padding="border")
        step = (update - inverse).detach().norm(dim=1).amax()
        inverse = update
        if bool(step <= tolerance):
            break
    residual = inverse + sample(displacement, grid, grid.points + channels_last(inverse), padding="border")
    return inverse, residual.norm(dim=1).flatten(1).amax(1)


def image_gradient(data: ImageTensor, grid: Grid) -> Float[Tensor, "B C D *grid"]:
    """Compute the gradient of an image by central differences.

    Args:
        data: ``(B, C, *grid.shape)``.
        grid: Where it is sampled.

    Returns:
        ``(B, C, D, *grid.shape)``, along ``(x, y, z)``, per mm.
    """
    ndim = grid.ndim
    batch, channels = data.shape[:2]
    axes = [
        torch.gradient(data, dim=ndim + 1 - a)[0] if grid.shape[ndim - 1 - a] > 1 else 0 * data for a in range(ndim)
    ]
    by_index = torch.stack(axes, dim=2).flatten(0, 1)  # (B C, D, *grid)
    turned = grid.inverse_affine.mT.expand(batch, -1, -1).repeat_interleave(channels, 0)
    return linear_map(turned, by_index).reshape(batch, channels, ndim, *grid.shape)


@full_precision
def jacobian_matrix(displacement: FieldTensor, grid: Grid) -> Float[Tensor, "B *grid D D"]:
    """Compute ``d(x + u)/dx`` by central differences, one-sided at the border.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.

    Returns:
        ``(B, *grid.shape, D, D)``, dimensionless; rows are components of the map, columns are directions.

    An axis of a single sample has the derivative of the identity.
    """
    ndim = grid.ndim
    axes = list(range(2 + ndim - 1, 1, -1))  # x, y, z
    by_index = torch.stack([_difference(displacement, axis) for axis in axes], dim=-1)
    by_mm = torch.einsum("bc...k,bkl->b...cl", by_index, _batched(grid.inverse_affine, displacement)[:, :ndim, :ndim])
    return by_mm + torch.eye(ndim, dtype=displacement.dtype, device=displacement.device)


def _difference(values: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(values) if values.shape[axis] == 1 else torch.gradient(values, dim=axis)[0]


def jacobian_determinant(displacement: FieldTensor, grid: Grid) -> ScalarTensor:
    """Compute ``det d(x + u)/dx``, the local change of volume; it is at most 0 where the map folds.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.

    Returns:
        ``(B, *grid.shape)``, dimensionless, 1 for a rigid motion.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> stretched = 0.1 * grid.points.movedim(-1, 1)
        >>> round(float(jacobian_determinant(stretched, grid).mean()), 3)
        1.331
    """
    if displacement.requires_grad and torch.is_grad_enabled():
        return _determinant(displacement, grid)
    parts = [part for _, part in determinant_slabs(displacement, grid)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def determinant_slabs(displacement: FieldTensor, grid: Grid) -> Iterator[tuple[slice, ScalarTensor]]:
    """Yield :func:`jacobian_determinant` slab by slab along the first array axis, with the position of the slab.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.
    """
    samples = displacement.shape[2]
    thickness = max(1, SLAB * samples // displacement[:, 0].numel())
    for first in range(0, samples, thickness):
        last = min(first + thickness, samples)
        low, high = max(first - 1, 0), min(last + 1, samples)  # central differences take one neighbor on each side
        part = _determinant(displacement.narrow(2, low, high - low), grid)
        yield slice(first, last), part.narrow(1, first - low, last - first)


def _determinant(displacement: FieldTensor, grid: Grid) -> ScalarTensor:
    if fused_without_gradient(displacement):
        return run(determinant, displacement, grid.inverse_affine[:, : grid.ndim, : grid.ndim].to(displacement))
    j = jacobian_matrix(displacement, grid)
    if grid.ndim == 2:
        return j[..., 0, 0] * j[..., 1, 1] - j[..., 0, 1] * j[..., 1, 0]
    return (torch.linalg.cross(j[..., 0], j[..., 1], dim=-1) * j[..., 2]).sum(-1)


def _batched(matrix: Tensor, like: Tensor) -> Tensor:
    """Expand ``(N, ...)`` to the batch of ``like``; ``N`` is 1 or the batch size."""
    return matrix.expand(like.shape[0], *matrix.shape[1:]).to(like.dtype)
