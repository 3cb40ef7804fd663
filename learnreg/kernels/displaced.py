"""``values(base(i) + L u(i))`` at each index of a grid, for a field ``u`` on a coarser lattice, in one pass.

A plane of the field is interpolated along z and x, a row along y; then the row is placed and sampled. Nothing of full
size exists but the result. The gradient goes the same way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, vectors, volumes

Taps = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the samples of a grid lie in the values.

    Args:
        base: ``(N, D+1, D+1)``, index of the grid to normalized coordinates.
        linear: ``(N, D, D)``, displacements to normalized coordinates; ``None`` is the identity.
        matrices: One matrix per array axis, from the lattice to the grid; ``None`` where both agree.
        shape: Of the grid.
        nearest: Whether to take the nearest sample instead of interpolating.
        zeros: Whether values are 0 outside of the field of view.
    """

    base: Tensor
    linear: Tensor | None
    matrices: Sequence[Tensor | None]
    shape: tuple[int, ...]
    nearest: bool = False
    zeros: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid with three axes."""
        return (1,) * (3 - len(self.shape)) + self.shape

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of the loops."""
        given = (None,) * (3 - len(self.shape)) + tuple(self.matrices)
        axes = tuple(
            (np.arange(n, dtype=np.int32), np.ones((1, n), np.float32)) if m is None else taps(array(m))
            for m, n in zip(given, self.grid, strict=True)
        )
        ndim = len(self.shape)
        base = np.zeros((len(self.base), 3, 4), np.float32)  # of a third axis, every coordinate is 0
        base[:, :ndim, :ndim], base[:, :ndim, 3] = array(self.base)[:, :ndim, :ndim], array(self.base)[:, :ndim, ndim]
        linear = np.zeros((1 if self.linear is None else len(self.linear), 3, 3), np.float32)
        linear[:, :ndim, :ndim] = np.eye(ndim) if self.linear is None else array(self.linear)
        return axes, base, linear, self.nearest, self.zeros


def sample(values: Tensor, field: Tensor, placement: Placement) -> Tensor:
    """Sample values; see :func:`learnreg.interpolation.sample_displaced`."""
    batch = max(len(values), len(field), len(placement.base))
    sampled = values.new_empty(batch, values.shape[1], *placement.grid)
    inputs = array(volumes(values)), array(vectors(field)), *placement.arguments(), sampled.numpy()
    in_parallel([partial(sample_loop, *inputs, *rows) for rows in parts(placement.grid[0], sampled.numel())])
    return sampled.reshape(batch, values.shape[1], *placement.shape)


def gradients(
    values: Tensor, field: Tensor, outer: Tensor, placement: Placement, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of :func:`sample` for ``values`` and for ``field``."""
    inputs = array(volumes(values)), array(vectors(field)), *placement.arguments(), array(volumes(outer))
    ranges = parts(placement.grid[0], outer.numel())
    start, weights = inputs[2][0]
    reaches = [(int(start[a:b].min()), int(start[a:b].max()) + len(weights)) for a, b in ranges]
    # Each part has its own sums, which are added in order: no races, and the same result in each run.
    nothing = np.zeros((0,) * 5, np.float32)
    for_values = [np.zeros_like(inputs[0]) if needed[0] else nothing for _ in ranges]
    for_field = [np.zeros_like(inputs[1][:, :, a:b]) if needed[1] else nothing for a, b in reaches]
    in_parallel(
        [
            partial(gradient_loop, *inputs, v, f, reach[0], *needed, *rows)
            for rows, reach, v, f in zip(ranges, reaches, for_values, for_field, strict=True)
        ]
    )
    total = np.zeros_like(inputs[1]) if len(ranges) > 1 and needed[1] else for_field[0]
    if len(ranges) > 1 and needed[1]:
        for (a, b), part in zip(reaches, for_field, strict=True):
            total[:, :, a:b] += part
    return (
        torch.from_numpy(sum(for_values[1:], for_values[0])).reshape(values.shape) if needed[0] else None,
        torch.from_numpy(total)[:, : field.shape[1]].reshape(field.shape) if needed[1] else None,
    )


@compiled
def taps(matrix: Array) -> Taps:
    """Return the first column that each row of a matrix uses, and the weights ``(width, rows)`` from there on."""
    rows, columns = matrix.shape
    start, width = np.zeros(rows, np.int32), 1
    for i in range(rows):
        low, high = 0, 1
        for j in range(columns):
            if matrix[i, j] != 0:
                low, high = j if high == 1 and matrix[i, low] == 0 else low, j + 1
        start[i], width = low, max(width, high - low)
    weights = np.zeros((width, rows), np.float32)
    for i in range(rows):
        start[i] = min(start[i], columns - width)
        for t in range(width):
            weights[t, i] = matrix[i, start[i] + t]
    return start, weights


@compiled
def _interpolate_plane(field: Array, z: int, axes: Any, linear: Array, coarse: Array, plane: Array) -> None:
    """Interpolate a plane of ``L u`` along z and x: ``(3, lz, ly, lx)`` to ``(3, ly, nx)``."""
    (start_z, weights_z), _, (start_x, weights_x) = axes
    _, ly, lx = coarse.shape
    nx = plane.shape[2]
    for c in range(3):
        for j in range(ly):
            for i in range(lx):
                coarse[c, j, i] = weights_z[0, z] * field[c, start_z[z], j, i]
            for t in range(1, len(weights_z)):
                for i in range(lx):
                    coarse[c, j, i] += weights_z[t, z] * field[c, start_z[z] + t, j, i]
    for j in range(ly):
        for i in range(lx):
            u, v, w = coarse[0, j, i], coarse[1, j, i], coarse[2, j, i]
            for c in range(3):
                coarse[c, j, i] = linear[c, 0] * u + linear[c, 1] * v + linear[c, 2] * w
    for c in range(3):
        for j in range(ly):
            for x in range(nx):
                plane[c, j, x] = weights_x[0, x] * coarse[c, j, start_x[x]]
            for t in range(1, len(weights_x)):
                for x in range(nx):
                    plane[c, j, x] += weights_x[t, x] * coarse[c, j, start_x[x] + t]


@compiled
def _place_row(plane: Array, z: int, y: int, axis_y: Taps, base: Array, points: Array) -> None:
    """Compute the normalized coordinates ``(3, nx)`` of a row."""
    start, weights = axis_y
    nx = points.shape[1]
    for c in range(3):
        origin = base[c, 2] * np.float32(z) + base[c, 3] + base[c, 1] * np.float32(y)
        for x in range(nx):
            points[c, x] = origin + weights[0, y] * plane[c, start[y], x]
        for t in range(1, len(weights)):
            for x in range(nx):
                points[c, x] += weights[t, y] * plane[c, start[y] + t, x]
        for x in range(nx):
            points[c, x] += base[c, 0] * np.float32(x)


@compiled
def _find_cells(
    points: Array, shape: tuple[int, int, int], nearest: bool, zeros: bool, cell: Array, within: Array, factor: Array
) -> None:
    """Find the cell that each point of a row lies in, beginning at its lowest corner.

    ``within`` is the position in the cell, from 0 to 1; ``factor`` is 0 where the value is 0, NaN where it is unknown.
    """
    half, one = np.float32(0.5), np.float32(1)
    for x in range(points.shape[1]):
        start, inside, known = np.int32(0), True, True
        for c in range(3):
            n, p = shape[2 - c], points[c, x]
            known = known and p == p
            inside = inside and abs(p) <= one
            at = ((p + one) * np.float32(n) - one) * half
            at = at if at > 0 else np.float32(0)
            at = min(at, np.float32(n - 1))
            at = np.rint(at) if nearest else at
            low = min(np.int32(at), np.int32(max(n - 2, 0)))
            within[c, x] = at - np.float32(low)
            start += low * np.int32(1 if c == 0 else shape[2] if c == 1 else shape[2] * shape[1])
        cell[x] = np.uint32(start)
        factor[x] = (one if inside or not zeros else np.float32(0)) if known else np.float32(np.nan)


@compiled
def sample_loop(
    values: Array,
    field: Array,
    axes: Any,
    base: Array,
    linear: Array,
    nearest: bool,
    zeros: bool,
    sampled: Array,
    first: int,
    last: int,
) -> None:
    """Fill the planes ``first`` to ``last`` of ``sampled``, ``(B, C, nz, ny, nx)``."""
    batch, channels, _, ny, nx = sampled.shape
    _, _, vz, vy, vx = values.shape
    _, _, _, ly, lx = field.shape
    coarse, plane = np.empty((3, ly, lx), np.float32), np.empty((3, ly, nx), np.float32)
    points, within = np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    cell, factor = np.empty(nx, np.uint32), np.empty(nx, np.float32)
    dx, dy, dz = np.uint64(1 if vx > 1 else 0), np.uint64(vx if vy > 1 else 0), np.uint64(vx * vy if vz > 1 else 0)
    for b in range(batch):
        v, u, turn, m = b % len(values), b % len(field), b % len(linear), b % len(base)
        for z in range(first, last):
            _interpolate_plane(field[u], z, axes, linear[turn], coarse, plane)
            for y in range(ny):
                _place_row(plane, z, y, axes[1], base[m], points)
                _find_cells(points, (vz, vy, vx), nearest, zeros, cell, within, factor)
                for channel in range(channels):
                    grid = values[v, channel].reshape(-1)
                    for x in range(nx):
                        k = np.uint64(cell[x])  # unsigned: a signed index may count from the end, which takes time
                        s, t, r = within[0, x], within[1, x], within[2, x]
                        v00 = grid[k] + s * (grid[k + dx] - grid[k])
                        v01 = grid[k + dy] + s * (grid[k + dy + dx] - grid[k + dy])
                        v10 = grid[k + dz] + s * (grid[k + dz + dx] - grid[k + dz])
                        v11 = grid[k + dz + dy] + s * (grid[k + dz + dy + dx] - grid[k + dz + dy])
                        v0, v1 = v00 + t * (v01 - v00), v10 + t * (v11 - v10)
                        sampled[b, channel, z, y, x] = (v0 + r * (v1 - v0)) * factor[x]


@compiled
def gradient_loop(
    values: Array,
    field: Array,
    axes: Any,
    base: Array,
    linear: Array,
    nearest: bool,
    zeros: bool,
    outer: Array,
    for_values: Array,
    for_field: Array,
    offset: int,
    values_needed: bool,
    field_needed: bool,
    first: int,
    last: int,
) -> None:
    """Add the gradients from the planes ``first`` to ``last``; plane 0 of ``for_field`` is ``offset`` in the field."""
    batch, channels, _, ny, nx = outer.shape
    _, _, vz, vy, vx = values.shape
    _, _, _, ly, lx = field.shape
    coarse, plane = np.empty((3, ly, lx), np.float32), np.empty((3, ly, nx), np.float32)
    points, within = np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    cell, factor, back = np.empty(nx, np.uint32), np.empty(nx, np.float32), np.empty((3, nx), np.float32)
    back_plane = np.empty((3, ly, nx), np.float32)
    (start_z, weights_z), (start_y, weights_y), (start_x, weights_x) = axes
    dx, dy, dz = np.uint64(1 if vx > 1 else 0), np.uint64(vx if vy > 1 else 0), np.uint64(vx * vy if vz > 1 else 0)
    one = np.float32(1)
    for b in range(batch):
        v, u, turn, m = b % len(values), b % len(field), b % len(linear), b % len(base)
        for z in range(first, last):
            _interpolate_plane(field[u], z, axes, linear[turn], coarse, plane)
            back_plane[:] = 0
            for y in range(ny):
                _place_row(plane, z, y, axes[1], base[m], points)
                _find_cells(points, (vz, vy, vx), nearest, zeros, cell, within, factor)
                back[:] = 0
                for channel in range(channels):
                    grid = values[v, channel].reshape(-1)
                    for x in range(nx):
                        k = np.uint64(cell[x])
                        s, t, r = within[0, x], within[1, x], within[2, x]
                        pull = outer[b, channel, z, y, x] * factor[x]
                        e00, e01 = grid[k + dx] - grid[k], grid[k + dy + dx] - grid[k + dy]
                        e10, e11 = grid[k + dz + dx] - grid[k + dz], grid[k + dz + dy + dx] - grid[k + dz + dy]
                        v00, v01 = grid[k] + s * e00, grid[k + dy] + s * e01
                        v10, v11 = grid[k + dz] + s * e10, grid[k + dz + dy] + s * e11
                        e0, e1 = e00 + t * (e01 - e00), e10 + t * (e11 - e10)
                        back[0, x] += pull * (e0 + r * (e1 - e0))
                        back[1, x] += pull * ((v01 - v00) + r * ((v11 - v10) - (v01 - v00)))
                        back[2, x] += pull * ((v10 + t * (v11 - v10)) - (v00 + t * (v01 - v00)))
                    if values_needed:
                        total = for_values[v, channel].reshape(-1)
                        for x in range(nx):
                            k = np.uint64(cell[x])
                            s, t, r = within[0, x], within[1, x], within[2, x]
                            pull = outer[b, channel, z, y, x] * factor[x]
                            near, far = pull * (one - r), pull * r
                            total[k] += near * (one - t) * (one - s)
                            total[k + dx] += near * (one - t) * s
                            total[k + dy] += near * t * (one - s)
                            total[k + dy + dx] += near * t * s
                            total[k + dz] += far * (one - t) * (one - s)
                            total[k + dz + dx] += far * (one - t) * s
                            total[k + dz + dy] += far * t * (one - s)
                            total[k + dz + dy + dx] += far * t * s
                if not field_needed or nearest:
                    continue
                for c in range(3):
                    n = np.float32((vx, vy, vz)[c])
                    for x in range(nx):  # beyond the outermost samples the value is constant
                        at = ((points[c, x] + one) * n - one) * np.float32(0.5)
                        back[c, x] *= np.float32(0.5) * n if at > 0 and at < n - one else np.float32(0)
                    for t in range(len(weights_y)):
                        w, j = weights_y[t, y], start_y[y] + t
                        for x in range(nx):
                            back_plane[c, j, x] += w * back[c, x]
            if not field_needed or nearest:
                continue
            coarse[:] = 0
            for c in range(3):
                for j in range(ly):
                    for t in range(len(weights_x)):
                        for x in range(nx):
                            coarse[c, j, start_x[x] + t] += weights_x[t, x] * back_plane[c, j, x]
            for t in range(len(weights_z)):
                w = weights_z[t, z]
                for c in range(3):
                    for j in range(ly):
                        for i in range(lx):
                            back_c = linear[turn, 0, c] * coarse[0, j, i] + linear[turn, 1, c] * coarse[1, j, i]
                            back_c += linear[turn, 2, c] * coarse[2, j, i]
                            for_field[u, c, start_z[z] + t - offset, j, i] += w * back_c
