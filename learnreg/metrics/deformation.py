"""Regularity of a deformation: folding, smoothness, inverse consistency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.fields import determinant_slabs, jacobian_determinant
from learnreg.grid import Grid, linear_map
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor, ScalarTensor

NDV_SLAB = 2**18  # samples that are worked on at once


def folding_fraction(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute the share of voxels whose Jacobian determinant is at most 0.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.

    Returns:
        ``(B,)`` in [0, 1], lower is better; 0 for a diffeomorphism.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> folding_fraction(-2 * grid.points.movedim(-1, 1), grid)
        tensor([1.])
    """
    determinant = jacobian_determinant(displacement, grid)
    return (determinant <= 0).flatten(1).to(determinant.dtype).mean(1)


def non_diffeomorphic_volume(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute the non-diffeomorphic volume (NDV): the volume that folds, as a share of the volume of the grid.

    The map is linear within the tetrahedra that a voxel forms with its neighbors: one per corner, and two that connect
    diagonals. NDV adds up the negative volumes of their images. It sees folds between voxels, which
    :func:`folding_fraction` with its central differences does not. In 2-D, triangles and areas take their place.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled; at least 3 samples per axis. Voxels at the border are not counted.

    Returns:
        ``(B,)``, at least 0, lower is better; 0 for a map without folds.

    Raises:
        InputError: An axis has fewer than 3 samples.

    Source:
        Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024; as the LUMIR
        challenge's evaluation does.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> non_diffeomorphic_volume(-2 * grid.points.movedim(-1, 1), grid)  # a reflection
        tensor([1.])
    """
    if min(grid.shape) < 3:
        raise InputError(f"The non-diffeomorphic volume needs 3 samples per axis; {grid.shape} has too few.")
    total, count = torch.zeros(displacement.shape[0], dtype=torch.float64), 0
    samples = grid.shape[0]
    thickness = max(1, NDV_SLAB * samples // displacement[:, 0].numel())
    for first in range(1, samples - 1, thickness):
        last = min(first + thickness, samples - 1)
        rows = slice(first - 1, last + 1)
        folded = _folded(_index_points(displacement[:, :, rows], grid.rows(rows)))
        total += folded.flatten(1).double().sum(1).cpu()
        count += folded[0].numel()
    return (total / count).to(displacement)


def _index_points(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Return where each sample is mapped, in samples, ``(B, D, *grid)`` with the components in array order."""
    ndim = grid.ndim
    moved = linear_map(grid.inverse_affine, displacement).flip(1)
    axes = [torch.arange(n, dtype=moved.dtype, device=moved.device) for n in displacement.shape[2:]]
    return moved + torch.stack(torch.meshgrid(*axes, indexing="ij"))[:ndim]


def _folded(points: Tensor) -> Tensor:
    """Return the negative volume around each inner sample, ``(B, *inner)``, in voxels."""
    ndim = points.shape[1]
    center = _neighbor(points, (0,) * ndim)
    steps = {
        (axis, sign): sign * (_neighbor(points, tuple(sign * (k == axis) for k in range(ndim))) - center)
        for axis in range(ndim)
        for sign in (-1, 1)
    }
    corners = [[steps[axis, sign] for axis, sign in enumerate(signs)] for signs in product((-1, 1), repeat=ndim)]
    if ndim == 3:
        for sign, pairs in ((-1, ((0, 1), (0, 2), (1, 2))), (1, ((0, 1), (1, 2), (0, 2)))):
            corners.append([_neighbor(points, tuple(sign * (k in pair) for k in range(3))) - center for pair in pairs])
    folded = torch.zeros_like(center[:, 0])
    for edges in corners:
        folded -= _determinant(edges).clamp(max=0)
    return folded / (2 * math.factorial(ndim))  # a corner is 1/6 or 1/2 of a voxel; there are two ways to divide it


def _determinant(edges: list[Tensor]) -> Tensor:
    """Return the determinant of two or three ``(B, D, *grid)`` edges, ``(B, *grid)``."""
    if len(edges) == 2:
        (a, b), (c, d) = (edge.unbind(1) for edge in edges)
        return a * d - b * c
    return (torch.linalg.cross(edges[0], edges[1], dim=1) * edges[2]).sum(1)


def _neighbor(points: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Return the points of the neighbors at an offset of all inner samples."""
    inner = [slice(1 + step, n - 1 + step) for step, n in zip(offset, points.shape[2:], strict=True)]
    return points[(slice(None), slice(None), *inner)]


def sd_log_jacobian(displacement: FieldTensor, grid: Grid, *, floor: float = 1e-9) -> Tensor:
    """Compute the standard deviation of the log Jacobian determinant (SDlogJ), a smoothness score.

    ``std_x log max(det(d(x + u)/dx), floor)`` over all voxels of ``grid``.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where ``displacement`` is sampled, the fixed grid.
        floor: Determinants below it, including folds, count as ``floor``.

    Returns:
        ``(B,)``, dimensionless, lower is smoother; 0 for a rigid transform.

    Source:
        Leow et al., Statistical properties of Jacobian maps, IEEE TMI 2007.
    """
    return log_spread(jacobian_determinant(displacement, grid), floor=floor)


def log_spread(determinant: ScalarTensor, *, floor: float = 1e-9) -> Tensor:
    """Compute :func:`sd_log_jacobian` from a Jacobian determinant ``(B, *grid)``."""
    return determinant.clamp(min=floor).log().flatten(1).std(1, correction=0)


def sd_log_jacobian_learn2reg(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute SDlogJ as the Learn2Reg challenge does.

    ``std log clip(J + 3, 1e-9, 1e9)``, without 2 voxels at each border.

    It is smaller than :func:`sd_log_jacobian`, about a quarter of it near the identity.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled; at least 5 samples per axis.

    Returns:
        ``(B,)``, dimensionless, lower is smoother.

    Raises:
        InputError: An axis has fewer than 5 samples.

    Source:
        Hering et al., Learn2Reg, IEEE TMI 2023, and its published evaluation.
    """
    if min(grid.shape) < 5:
        raise InputError(f"Learn2Reg's SDlogJ cuts off 2 voxels on each side; {grid.shape} has too few.")
    return log_spread_learn2reg(jacobian_determinant(displacement, grid))


def log_spread_learn2reg(determinant: ScalarTensor) -> Tensor:
    """Compute :func:`sd_log_jacobian_learn2reg` from a Jacobian determinant ``(B, *grid)``."""
    return _log_learn2reg(_inner(determinant)).flatten(1).std(1, correction=0)


def _inner(determinant: Tensor, first_axis: int = 1) -> Tensor:
    """Cut off 2 voxels at each border."""
    for axis in range(first_axis, determinant.ndim):
        determinant = determinant.narrow(axis, 2, determinant.shape[axis] - 4)
    return determinant


def _log_learn2reg(determinant: Tensor) -> Tensor:
    return (determinant + 3).clamp(1e-9, 1e9).log()


@dataclass(frozen=True, eq=False)
class Regularity:
    """Scores of the regularity of a displacement, ``(B,)`` each.

    Args:
        folding: See :func:`folding_fraction`.
        sd_log_jacobian: See :func:`sd_log_jacobian`.
        sd_log_jacobian_learn2reg: See :func:`sd_log_jacobian_learn2reg`; ``None`` for fewer than 5 samples on an axis.
    """

    folding: Tensor
    sd_log_jacobian: Tensor
    sd_log_jacobian_learn2reg: Tensor | None


@torch.no_grad()
def regularity(displacement: FieldTensor, grid: Grid, *, floor: float = 1e-9) -> Regularity:
    """Score a displacement by its Jacobian determinant, slab by slab: no volume is kept.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.
        floor: See :func:`sd_log_jacobian`.
    """
    samples, large = grid.shape[0], min(grid.shape) >= 5
    folded, spread, inner = _Moments(), _Moments(), _Moments()
    for rows, determinant in determinant_slabs(displacement, grid):
        folded.add(determinant <= 0)
        spread.add(determinant.clamp(min=floor).log())
        first, last = max(rows.start, 2) - rows.start, min(rows.stop, samples - 2) - rows.start
        if large and first < last:
            inner.add(_log_learn2reg(_inner(determinant[:, first:last], first_axis=2)))
    return Regularity(
        folded.mean.to(displacement.dtype),
        spread.deviation.to(displacement.dtype),
        inner.deviation.to(displacement.dtype) if large else None,
    )


class _Moments:
    """Mean and standard deviation of values that come in parts, merged as by Chan et al. (1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        values = values.flatten(1).double()
        new = values.shape[1]
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        if self.count == 0:
            self.count, self.mean, self._squares = new, mean, squares
            return
        total, apart = self.count + new, mean - self.mean
        self._squares = self._squares + squares + apart.square() * (self.count * new / total)
        self.count, self.mean = total, self.mean + apart * (new / total)

    @property
    def deviation(self) -> Tensor:
        return (self._squares / self.count).sqrt()


def inverse_consistency(forward: Transform, backward: Transform, grid: Grid) -> Tensor:
    """Compute the mean distance between ``backward(forward(x))`` and ``x`` over a grid, ``(B,)``, mm."""
    returned = backward(forward.map_grid(grid))
    return (returned - grid.points).norm(dim=-1).flatten(1).mean(1)
