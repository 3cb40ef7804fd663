"""Scaling and squaring of a stationary velocity, in samples of its grid; see :func:`learnreg.fields.exponential`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, vectors


def exponential(velocity: Tensor, to_index: Tensor, to_mm: Tensor, steps: int) -> tuple[Tensor, ...]:
    """Integrate a velocity to time 1.

    Args:
        velocity: ``(B, D, *grid)``, mm per unit time.
        to_index: ``(N, D, D)``, mm to index.
        to_mm: ``(N, D, D)``, index to mm.
        steps: Number of squarings.

    Returns:
        The displacement ``(B, D, *grid)``, mm, and what :func:`gradient` needs: the scaled velocity, and the
        displacement before each squaring, in samples.
    """
    scaled = _mapped(array(vectors(velocity)), _matrices(to_index) / np.float32(2**steps))
    ranges = parts(scaled.shape[2], scaled[:, 0].size)
    stages = [scaled, np.empty_like(scaled)]
    in_parallel([partial(start_loop, *stages, *rows) for rows in ranges])
    for _ in range(steps):
        stages.append(np.empty_like(scaled))
        in_parallel([partial(square_loop, *stages[-2:], *rows) for rows in ranges])
    found = _mapped(stages.pop(), _matrices(to_mm))
    return _field(found, velocity), *map(torch.from_numpy, stages)


def gradient(outer: Tensor, to_index: Tensor, to_mm: Tensor, *stages: Tensor) -> Tensor:
    """Return the gradient of :func:`exponential` for the velocity."""
    scaled, *displacements = map(array, stages)
    steps = len(displacements)
    pull = _mapped(array(vectors(outer)), _matrices(to_mm).swapaxes(1, 2))
    ranges = parts(scaled.shape[2], scaled[:, 0].size)
    for displacement in reversed(displacements):
        # Each part has its own sums, which are added in order: no races, and the same result in each run.
        sums = [np.zeros_like(scaled) for _ in ranges]
        tasks = zip(ranges, sums, strict=True)
        in_parallel([partial(square_gradient_loop, displacement, pull, total, *rows) for rows, total in tasks])
        pull = sum(sums[1:], sums[0])
    found = np.empty_like(scaled)
    in_parallel([partial(start_gradient_loop, scaled, pull, found, *rows) for rows in ranges])
    return _field(_mapped(found, _matrices(to_index).swapaxes(1, 2) / np.float32(2**steps)), outer)


def _matrices(given: Tensor) -> Array:
    """Return ``(N, 3, 3)`` matrices, zero along a third axis that is missing."""
    matrices = np.zeros((len(given), 3, 3), np.float32)
    matrices[:, : given.shape[1], : given.shape[2]] = array(given)
    return matrices


def _mapped(field: Array, matrices: Array) -> Array:
    found = np.empty_like(field)
    ranges = parts(field.shape[2], field[:, 0].size)
    in_parallel([partial(map_loop, field, np.ascontiguousarray(matrices), found, *rows) for rows in ranges])
    return found


def _field(values: Array, like: Tensor) -> Tensor:
    """Return ``(B, 3, nz, ny, nx)`` values in the shape of a field."""
    return torch.from_numpy(values)[:, : like.shape[1]].reshape(like.shape)


@compiled
def map_loop(field: Array, matrices: Array, found: Array, first: int, last: int) -> None:
    """Multiply the vectors of the planes ``first`` to ``last`` by a matrix."""
    batch, _, _, ny, nx = field.shape
    for b in range(batch):
        m = matrices[b % len(matrices)]
        for z in range(first, last):
            for y in range(ny):
                u, v, w = field[b, 0, z, y], field[b, 1, z, y], field[b, 2, z, y]
                for c in range(3):
                    out = found[b, c, z, y]
                    for x in range(nx):
                        out[x] = m[c, 0] * u[x] + m[c, 1] * v[x] + m[c, 2] * w[x]


@compiled
def _share(i: int, n: int) -> Any:
    """Return the reciprocal of the distance between the neighbors of sample ``i``; 0 for a single sample."""
    return np.float32(0 if n == 1 else 1 if i in (0, n - 1) else 0.5)


@compiled
def start_loop(w: Array, u: Array, first: int, last: int) -> None:
    """Compute ``w + (Dw) w / 2``, by central differences, one-sided at the border."""
    batch, _, nz, ny, nx = w.shape
    half = np.float32(0.5)
    for b in range(batch):
        for z in range(first, last):
            for y in range(ny):
                along_x, along_y, along_z = w[b, 0, z, y], w[b, 1, z, y], w[b, 2, z, y]
                share_y, share_z = half * _share(y, ny), half * _share(z, nz)
                for c in range(3):
                    here, out = w[b, c, z, y], u[b, c, z, y]
                    north, south = w[b, c, z, min(y + 1, ny - 1)], w[b, c, z, max(y - 1, 0)]
                    above, below = w[b, c, min(z + 1, nz - 1), y], w[b, c, max(z - 1, 0), y]
                    for x in range(nx):
                        slope = share_y * (north[x] - south[x]) * along_y[x]
                        out[x] = here[x] + slope + share_z * (above[x] - below[x]) * along_z[x]
                    for x in range(1, nx - 1):
                        out[x] += half * half * (here[x + 1] - here[x - 1]) * along_x[x]
                    if nx > 1:
                        out[0] += half * (here[1] - here[0]) * along_x[0]
                        out[nx - 1] += half * (here[nx - 1] - here[nx - 2]) * along_x[nx - 1]


@compiled
def _add_products(weight: float, a: Array, b: Array, out: Array) -> None:
    """Add ``weight a b`` to a row."""
    for x in range(len(out)):
        out[x] += weight * a[x] * b[x]


@compiled
def start_gradient_loop(w: Array, outer: Array, found: Array, first: int, last: int) -> None:
    """Compute the gradient of :func:`start_loop` for ``w``."""
    batch, _, nz, ny, nx = w.shape
    half = np.float32(0.5)
    slope, moved = np.empty(nx, np.float32), np.empty(nx, np.float32)
    for b in range(batch):
        for z in range(first, last):
            for y in range(ny):
                for c in range(3):
                    found[b, c, z, y] = outer[b, c, z, y]
                share_y, share_z = half * _share(y, ny), half * _share(z, nz)
                for c in range(3):
                    here, pull, out = w[b, c, z, y], outer[b, c, z, y], found[b, c, z, y]
                    # of the vector that carries: the slopes of component c
                    slope[:] = 0
                    for x in range(1, nx - 1):
                        slope[x] = half * half * (here[x + 1] - here[x - 1])
                    if nx > 1:
                        slope[0], slope[nx - 1] = half * (here[1] - here[0]), half * (here[nx - 1] - here[nx - 2])
                    _add_products(1, slope, pull, found[b, 0, z, y])
                    _add_products(share_y, w[b, c, z, min(y + 1, ny - 1)], pull, found[b, 1, z, y])
                    _add_products(-share_y, w[b, c, z, max(y - 1, 0)], pull, found[b, 1, z, y])
                    _add_products(share_z, w[b, c, min(z + 1, nz - 1), y], pull, found[b, 2, z, y])
                    _add_products(-share_z, w[b, c, max(z - 1, 0), y], pull, found[b, 2, z, y])
                    # of what is carried: this sample is a neighbor of others, and at the border of itself
                    for x in range(nx):
                        moved[x] = half * half * w[b, 0, z, y, x] * pull[x]
                    moved[0] *= 2
                    moved[nx - 1] *= 2
                    if nx > 1:
                        out[0] -= moved[0]
                        out[nx - 1] += moved[nx - 1]
                    for x in range(nx - 1):
                        out[x + 1] += moved[x]
                    for x in range(nx - 1):
                        out[x] -= moved[x + 1]
                    for i in range(max(y - 1, 0), min(y + 2, ny)):
                        sign = (1 if min(i + 1, ny - 1) == y else 0) - (1 if max(i - 1, 0) == y else 0)
                        _add_products(sign * half * _share(i, ny), w[b, 1, z, i], outer[b, c, z, i], out)
                    for i in range(max(z - 1, 0), min(z + 2, nz)):
                        sign = (1 if min(i + 1, nz - 1) == z else 0) - (1 if max(i - 1, 0) == z else 0)
                        _add_products(sign * half * _share(i, nz), w[b, 2, i, y], outer[b, c, i, y], out)


@compiled
def _find_cells(u: Array, z: int, y: int, cell: Array, within: Array, inside: Array) -> None:
    """Find the cell that each point ``x + u(x)`` of a row lies in; ``inside`` is 0 where a coordinate is cut off."""
    cell[:] = 0
    for c in range(3):
        n, row, part, counted = u.shape[3 - c], u[c, z, y], within[c], inside[c]
        last, highest = np.float32(n - 1), np.int32(max(n - 2, 0))
        stride = np.int32(1 if c == 0 else u.shape[3] if c == 1 else u.shape[3] * u.shape[2])
        origin, step = np.float32(0 if c == 0 else y if c == 1 else z), np.float32(1 if c == 0 else 0)
        for x in range(len(cell)):
            at = row[x] + (origin + step * np.float32(x))
            counted[x] = np.float32(1) if at > 0 and at < last else np.float32(0)
            at = at if at > 0 else np.float32(0)
            at = min(at, last)
            low = min(np.int32(at), highest)
            part[x] = at - np.float32(low)
            cell[x] += np.uint32(low * stride)


@compiled
def _steps(u: Array) -> Any:
    """Return the steps to the next sample along x, y and z; 0 along an axis of one sample."""
    _, nz, ny, nx = u.shape  # unsigned: a signed index may count from the end, which takes time
    return np.uint64(1 if nx > 1 else 0), np.uint64(nx if ny > 1 else 0), np.uint64(nx * ny if nz > 1 else 0)


@compiled
def square_loop(field: Array, squared: Array, first: int, last: int) -> None:
    """Compute ``u(x) + u(x + u(x))``; outside of the grid ``u`` has its border value."""
    batch, _, _, ny, nx = field.shape
    cell, within, inside = np.empty(nx, np.uint32), np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    position_x, position_y, position_z = within[0], within[1], within[2]
    for b in range(batch):
        u = field[b]
        dx, dy, dz = _steps(u)
        for z in range(first, last):
            for y in range(ny):
                _find_cells(u, z, y, cell, within, inside)
                for c in range(3):
                    grid, here, out = u[c].reshape(-1), u[c, z, y], squared[b, c, z, y]
                    for x in range(nx):
                        k = np.uint64(cell[x])
                        s, t, r = position_x[x], position_y[x], position_z[x]
                        v00 = grid[k] + s * (grid[k + dx] - grid[k])
                        v01 = grid[k + dy] + s * (grid[k + dy + dx] - grid[k + dy])
                        v10 = grid[k + dz] + s * (grid[k + dz + dx] - grid[k + dz])
                        v11 = grid[k + dz + dy] + s * (grid[k + dz + dy + dx] - grid[k + dz + dy])
                        v0, v1 = v00 + t * (v01 - v00), v10 + t * (v11 - v10)
                        out[x] = here[x] + (v0 + r * (v1 - v0))


@compiled
def square_gradient_loop(field: Array, outer: Array, found: Array, first: int, last: int) -> None:
    """Add the gradient of :func:`square_loop` from the planes ``first`` to ``last``."""
    batch, _, _, ny, nx = field.shape
    cell, within, inside = np.empty(nx, np.uint32), np.empty((3, nx), np.float32), np.empty((3, nx), np.float32)
    position_x, position_y, position_z = within[0], within[1], within[2]
    back = np.empty((3, nx), np.float32)
    back_x, back_y, back_z = back[0], back[1], back[2]
    one = np.float32(1)
    for b in range(batch):
        u = field[b]
        dx, dy, dz = _steps(u)
        for z in range(first, last):
            for y in range(ny):
                _find_cells(u, z, y, cell, within, inside)
                back[:] = 0
                for c in range(3):
                    grid, total, pull = u[c].reshape(-1), found[b, c].reshape(-1), outer[b, c, z, y]
                    for x in range(nx):
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
                    for x in range(nx):
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
                for c in range(3):
                    out, pull, counted, slope = found[b, c, z, y], outer[b, c, z, y], inside[c], back[c]
                    for x in range(nx):
                        out[x] += pull[x] + slope[x] * counted[x]
