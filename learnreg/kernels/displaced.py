"""``values(base(i) + L u(i))`` at each index of a grid, for a field ``u`` on a coarser lattice, in one pass.

A plane of the lattice is interpolated along x, once; planes of the grid are blended from these along z, and rows of the
grid from a plane along y. Then the row is placed and sampled. Nothing of full size exists but the result. The gradient
goes the same way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, vectors, volumes

Taps = tuple[Array, Array]
ROW = 512  # points


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

    @cached_property
    def arguments(self) -> tuple[Any, ...]:
        """Arguments of the loops."""
        given = (None,) * (3 - len(self.shape)) + tuple(self.matrices)
        axes = tuple(unchanged(n) if m is None else taps(array(m)) for m, n in zip(given, self.grid, strict=True))
        ndim = len(self.shape)
        base = np.zeros((len(self.base), 3, 4), np.float32)  # of a third axis, every coordinate is 0
        base[:, :ndim, :ndim], base[:, :ndim, 3] = array(self.base)[:, :ndim, :ndim], array(self.base)[:, :ndim, ndim]
        linear = np.zeros((1 if self.linear is None else len(self.linear), 3, 3), np.float32)
        linear[:, :ndim, :ndim] = np.eye(ndim) if self.linear is None else array(self.linear)
        return axes, base, linear, self.nearest, self.zeros

    @property
    def back_x(self) -> Taps:
        """The transpose of the matrix along x."""
        last = self.matrices[-1]
        return unchanged(self.shape[-1]) if last is None else taps(array(last.T))


def sample(values: Tensor, field: Tensor, placement: Placement) -> Tensor:
    """Sample values; see :func:`learnreg.interpolation.sample_displaced`."""
    batch = max(len(values), len(field), len(placement.base))
    sampled = values.new_empty(batch, values.shape[1], *placement.grid)
    inputs = array(volumes(values)), array(vectors(field)), *placement.arguments, sampled.numpy()
    in_parallel([partial(sample_loop, *inputs, *rows) for rows in parts(placement.grid[0], sampled.numel())])
    return sampled.reshape(batch, values.shape[1], *placement.shape)


def sample_points(values: Tensor, points: Tensor, matrix: Tensor, *, nearest: bool, zeros: bool) -> Tensor:
    """Sample values at points, without a gradient.

    Args:
        values: ``(B, C, *grid)``.
        points: ``(B, *P, D)``.
        matrix: ``(B, D+1, D+1)``, points to normalized coordinates.
        nearest: Whether to take the nearest sample instead of interpolating.
        zeros: Whether values are 0 outside of the field of view.

    Returns:
        ``(B, C, *P)``.
    """
    shape, ndim = points.shape[1:-1], points.shape[-1]
    batch = max(len(values), len(points), len(matrix))
    rows = np.zeros((len(matrix), 3, 4), np.float32)
    rows[:, :ndim, :ndim], rows[:, :ndim, 3] = array(matrix)[:, :ndim, :ndim], array(matrix)[:, :ndim, ndim]
    flat = array(points).reshape(len(points), -1, ndim)
    sampled = values.new_empty(batch, values.shape[1], flat.shape[1])
    inputs = array(volumes(values)), flat, rows, nearest, zeros, sampled.numpy()
    ends = parts(flat.shape[1], batch * flat.shape[1])
    in_parallel([partial(points_loop, *inputs, *reach) for reach in ends])
    return sampled.reshape(batch, values.shape[1], *shape)


def gradients(
    values: Tensor, field: Tensor, outer: Tensor, placement: Placement, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of :func:`sample` for ``values`` and for ``field``."""
    inputs = (
        array(volumes(values)),
        array(vectors(field)),
        *placement.arguments,
        array(volumes(outer)),
        placement.back_x,
    )
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


@lru_cache(maxsize=128)
def unchanged(size: int) -> Taps:
    """Return the :func:`taps` of the identity."""
    return np.arange(size, dtype=np.int32), np.ones((1, size), np.float32)


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
def _mapped(field: Array, k: int, linear: Array, coarse: Array) -> None:
    """Compute ``L u`` on plane ``k`` of the lattice, ``(3, ly, lx)``."""
    for c in range(3):
        for j in range(coarse.shape[1]):
            u, v, w, out = field[0, k, j], field[1, k, j], field[2, k, j], coarse[c, j]
            for i in range(len(out)):
                out[i] = linear[c, 0] * u[i] + linear[c, 1] * v[i] + linear[c, 2] * w[i]


@compiled
def _along_x(row: Array, axis: Taps, out: Array) -> None:
    """Apply a matrix to a row."""
    start, weights = axis
    if len(weights) == 2:  # linear interpolation, in one pass
        low, high = weights[0], weights[1]
        for x in range(len(out)):
            k = np.uint32(start[x])
            out[x] = low[x] * row[k] + high[x] * row[k + np.uint32(1)]
        return
    out[:] = 0
    for t in range(len(weights)):
        weight = weights[t]
        for x in range(len(out)):
            out[x] += weight[x] * row[np.uint32(start[x] + t)]


@compiled
def _add(row: Array, weight: float, out: Array) -> None:
    """Add ``weight row`` to a row."""
    for x in range(len(out)):
        out[x] += weight * row[x]


@compiled
def _interpolate_plane(field: Array, z: int, axes: Any, linear: Array, kept: Any, plane: Array) -> None:
    """Interpolate plane ``z`` of ``L u`` along z and x, ``(3, ly, nx)``; ``kept`` holds planes of the lattice."""
    (start_z, weights_z), _, axis_x = axes
    held, coarse, wide = kept
    width = len(weights_z)
    plane[:] = 0
    for t in range(width):
        k = start_z[z] + t
        slot = k % width
        if held[slot] != k:
            held[slot] = k
            _mapped(field, k, linear, coarse)
            for c in range(3):
                for j in range(coarse.shape[1]):
                    _along_x(coarse[c, j], axis_x, wide[slot, c, j])
        _add(wide[slot].reshape(-1), weights_z[t, z], plane.reshape(-1))


@compiled
def _place_row(plane: Array, z: int, y: int, axis_y: Taps, base: Array, points: Array) -> None:
    """Compute the normalized coordinates ``(3, nx)`` of a row."""
    start, weights = axis_y
    for c in range(3):
        origin = base[c, 2] * np.float32(z) + base[c, 3] + base[c, 1] * np.float32(y)
        step, out, row, weight = base[c, 0], points[c], plane[c, start[y]], weights[0, y]
        for x in range(len(out)):
            out[x] = origin + step * np.float32(x) + weight * row[x]
        for t in range(1, len(weights)):
            _add(plane[c, start[y] + t], weights[t, y], out)


@compiled
def _find_cells(
    points: Array, shape: tuple[int, int, int], nearest: bool, zeros: bool, cell: Array, within: Array, factor: Array
) -> None:
    """Find the cell that each point of a row lies in, beginning at its lowest corner.

    ``within`` is the position in the cell, from 0 to 1; ``factor`` is 0 where the value is 0, NaN where it is unknown.
    """
    half, one = np.float32(0.5), np.float32(1)
    cell[:] = 0
    factor[:] = 1
    for c in range(3):
        size, last = np.float32(shape[2 - c]), np.float32(shape[2 - c] - 1)
        highest = np.int32(max(shape[2 - c] - 2, 0))
        stride = np.int32(1 if c == 0 else shape[2] if c == 1 else shape[2] * shape[1])
        place, part = points[c], within[c]
        for x in range(len(cell)):
            p = place[x]
            at = ((p + one) * size - one) * half
            at = at if at > 0 else np.float32(0)
            at = min(at, last)
            at = np.rint(at) if nearest else at
            low = min(np.int32(at), highest)
            part[x] = at - np.float32(low)
            cell[x] += np.uint32(low * stride)
            known = factor[x] if abs(p) <= one or not zeros else np.float32(0) * factor[x]
            factor[x] = known if p == p else np.float32(np.nan)


@compiled
def _steps(shape: tuple[int, ...]) -> Any:
    """Return the steps to the next sample along x, y and z; 0 along an axis of one sample."""
    vz, vy, vx = shape  # unsigned: a signed index may count from the end, which takes time
    return np.uint64(1 if vx > 1 else 0), np.uint64(vx if vy > 1 else 0), np.uint64(vx * vy if vz > 1 else 0)


@compiled
def _sample_row(grid: Array, steps: Any, cell: Array, within: Array, factor: Array, out: Array) -> None:
    """Interpolate values in cells."""
    dx, dy, dz = steps
    position_x, position_y, position_z = within[0], within[1], within[2]
    for x in range(len(out)):
        k = np.uint64(cell[x])
        s, t, r = position_x[x], position_y[x], position_z[x]
        v00 = grid[k] + s * (grid[k + dx] - grid[k])
        v01 = grid[k + dy] + s * (grid[k + dy + dx] - grid[k + dy])
        v10 = grid[k + dz] + s * (grid[k + dz + dx] - grid[k + dz])
        v11 = grid[k + dz + dy] + s * (grid[k + dz + dy + dx] - grid[k + dz + dy])
        v0, v1 = v00 + t * (v01 - v00), v10 + t * (v11 - v10)
        out[x] = (v0 + r * (v1 - v0)) * factor[x]


@compiled
def _add_slopes(grid: Array, steps: Any, cell: Array, within: Array, pull: Array, back: Array) -> None:
    """Add ``pull`` times the slopes of the values in cells to ``back``, ``(3, nx)``."""
    dx, dy, dz = steps
    position_x, position_y, position_z = within[0], within[1], within[2]
    back_x, back_y, back_z = back[0], back[1], back[2]
    for x in range(len(pull)):
        k = np.uint64(cell[x])
        s, t, r = position_x[x], position_y[x], position_z[x]
        e00, e01 = grid[k + dx] - grid[k], grid[k + dy + dx] - grid[k + dy]
        e10, e11 = grid[k + dz + dx] - grid[k + dz], grid[k + dz + dy + dx] - grid[k + dz + dy]
        v00, v01 = grid[k] + s * e00, grid[k + dy] + s * e01
        v10, v11 = grid[k + dz] + s * e10, grid[k + dz + dy] + s * e11
        e0, e1 = e00 + t * (e01 - e00), e10 + t * (e11 - e10)
        back_x[x] += pull[x] * (e0 + r * (e1 - e0))
        back_y[x] += pull[x] * ((v01 - v00) + r * ((v11 - v10) - (v01 - v00)))
        back_z[x] += pull[x] * ((v10 + t * (v11 - v10)) - (v00 + t * (v01 - v00)))


@compiled
def _spread_row(total: Array, steps: Any, cell: Array, within: Array, pull: Array) -> None:
    """Add ``pull`` to the corners of cells."""
    dx, dy, dz = steps
    one = np.float32(1)
    position_x, position_y, position_z = within[0], within[1], within[2]
    for x in range(len(pull)):
        k = np.uint64(cell[x])
        s, t, r = position_x[x], position_y[x], position_z[x]
        near, far = pull[x] * (one - r), pull[x] * r
        total[k] += near * (one - t) * (one - s)
        total[k + dx] += near * (one - t) * s
        total[k + dy] += near * t * (one - s)
        total[k + dy + dx] += near * t * s
        total[k + dz] += far * (one - t) * (one - s)
        total[k + dz + dx] += far * (one - t) * s
        total[k + dz + dy] += far * t * (one - s)
        total[k + dz + dy + dx] += far * t * s


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
    _, _, _, ly, lx = field.shape
    width = len(axes[0][1])
    coarse, plane = np.empty((3, ly, lx), np.float32), np.empty((3, ly, nx), np.float32)
    held, wide = np.empty(width, np.int64), np.empty((width, 3, ly, nx), np.float32)
    points, within = np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    cell, factor = np.empty(nx, np.uint32), np.empty(nx, np.float32)
    steps = _steps(values.shape[2:])
    for b in range(batch):
        v, u, turn, m = b % len(values), b % len(field), b % len(linear), b % len(base)
        held[:] = -1
        for z in range(first, last):
            _interpolate_plane(field[u], z, axes, linear[turn], (held, coarse, wide), plane)
            for y in range(ny):
                _place_row(plane, z, y, axes[1], base[m], points)
                _find_cells(points, values.shape[2:], nearest, zeros, cell, within, factor)
                for c in range(channels):
                    _sample_row(values[v, c].reshape(-1), steps, cell, within, factor, sampled[b, c, z, y])


@compiled
def points_loop(
    values: Array, points: Array, matrix: Array, nearest: bool, zeros: bool, sampled: Array, first: int, last: int
) -> None:
    """Fill ``sampled[:, :, first:last]``, in rows whose coordinates stay in the cache."""
    batch, channels, _ = sampled.shape
    ndim = points.shape[2]
    place, within = np.empty((3, ROW), np.float32), np.empty((3, ROW), np.float32)
    cell, factor = np.empty(ROW, np.uint32), np.empty(ROW, np.float32)
    steps = _steps(values.shape[2:])
    for b in range(batch):
        v, m, given = b % len(values), matrix[b % len(matrix)], points[b % len(points)]
        for begin in range(first, last, ROW):
            n = min(ROW, last - begin)
            for c in range(3):
                for x in range(n):
                    place[c, x] = m[c, 3]
                for d in range(ndim):
                    for x in range(n):
                        place[c, x] += m[c, d] * given[begin + x, d]
            _find_cells(place[:, :n], values.shape[2:], nearest, zeros, cell[:n], within[:, :n], factor[:n])
            for c in range(channels):
                row = sampled[b, c, begin : begin + n]
                _sample_row(values[v, c].reshape(-1), steps, cell[:n], within[:, :n], factor[:n], row)


@compiled
def _pull_back_plane(k: int, linear: Array, axis_x: Taps, coarse: Array, back: Array, for_field: Array) -> None:
    """Add the gradient for plane ``k`` of the field from that for its interpolation along x, ``(3, ly, nx)``."""
    for c in range(3):
        for j in range(coarse.shape[1]):
            _along_x(back[c, j], axis_x, coarse[c, j])
    for c in range(3):
        for d in range(3):
            for j in range(coarse.shape[1]):
                _add(coarse[d, j], linear[d, c], for_field[c, k, j])


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
    back_x: Taps,
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
    _, _, _, ly, lx = field.shape
    (start_z, weights_z), (start_y, weights_y), _ = axes
    width, field_needed = len(weights_z), field_needed and not nearest
    coarse, plane = np.empty((3, ly, lx), np.float32), np.empty((3, ly, nx), np.float32)
    held, wide = np.empty(width, np.int64), np.empty((width, 3, ly, nx), np.float32)
    back_held, back_wide = np.empty(width, np.int64), np.empty((width, 3, ly, nx), np.float32)
    points, within = np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    cell, factor, pull = np.empty(nx, np.uint32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    back, back_plane = np.empty((3, nx), np.float32), np.empty((3, ly, nx), np.float32)
    steps = _steps(values.shape[2:])
    half, one = np.float32(0.5), np.float32(1)
    for b in range(batch):
        v, u, turn, m = b % len(values), b % len(field), b % len(linear), b % len(base)
        held[:] = -1
        back_held[:] = -1
        for z in range(first, last):
            _interpolate_plane(field[u], z, axes, linear[turn], (held, coarse, wide), plane)
            back_plane[:] = 0
            for y in range(ny):
                _place_row(plane, z, y, axes[1], base[m], points)
                _find_cells(points, values.shape[2:], nearest, zeros, cell, within, factor)
                back[:] = 0
                for c in range(channels):
                    above = outer[b, c, z, y]
                    for x in range(nx):
                        pull[x] = above[x] * factor[x]
                    if field_needed:
                        _add_slopes(values[v, c].reshape(-1), steps, cell, within, pull, back)
                    if values_needed:
                        _spread_row(for_values[v, c].reshape(-1), steps, cell, within, pull)
                if not field_needed:
                    continue
                for c in range(3):
                    n, place, slope = np.float32(values.shape[4 - c]), points[c], back[c]
                    for x in range(nx):  # beyond the outermost samples the value is constant
                        at = ((place[x] + one) * n - one) * half
                        slope[x] *= half * n if at > 0 and at < n - one else np.float32(0)
                    for t in range(len(weights_y)):
                        _add(slope, weights_y[t, y], back_plane[c, start_y[y] + t])
            if not field_needed:
                continue
            for t in range(width):
                k = start_z[z] + t
                slot = k % width
                if back_held[slot] != k:
                    if back_held[slot] >= 0:
                        _pull_back_plane(
                            back_held[slot] - offset, linear[turn], back_x, coarse, back_wide[slot], for_field[u]
                        )
                    back_held[slot] = k
                    back_wide[slot] = 0
                _add(back_plane.reshape(-1), weights_z[t, z], back_wide[slot].reshape(-1))
        for slot in range(width):
            if back_held[slot] >= 0:
                _pull_back_plane(back_held[slot] - offset, linear[turn], back_x, coarse, back_wide[slot], for_field[u])
