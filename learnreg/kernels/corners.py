"""Penalties on the volume of each corner of each cell, with their gradient, in one pass."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, optional, parts, vectors


def corner_penalty(
    displacement: Tensor, needed: bool, *, affine: Tensor, weight: Tensor | None, bound: float, logarithmic: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the mean over the corners of all cells of a function of ``det d(x + u)/dx``.

    Args:
        displacement: ``(B, D, *grid)``, mm.
        needed: Whether to compute the gradient.
        affine: ``(N, D, D)``, index to mm; its columns are the edges of a cell.
        weight: ``(B or 1, 1, *grid)``, factor at the samples; a cell gets their mean. ``None`` is 1.
        bound: The margin of a folding penalty, or the floor of a logarithm.
        logarithmic: ``log(det)^2``, continued by the tangent of the logarithm below ``bound``; otherwise ``max(bound -
            det, 0)``.

    Returns:
        ``(B,)`` and the gradient.
    """
    ndim = displacement.shape[1]
    single = [axis for axis in range(2, 5) if vectors(displacement).shape[axis] == 1]
    u = array(_doubled(vectors(displacement), single))
    local = optional(None if weight is None else _doubled(weight if ndim == 3 else weight.unsqueeze(2), single))
    sides = np.tile(np.eye(3, dtype=np.float32), (len(affine), 1, 1))
    sides[:, :ndim, :ndim] = array(affine)
    ranges = parts(u.shape[2] - 1, u[:, 0].size)
    sums = np.zeros((len(ranges), len(u)))
    nothing = np.zeros((0,) * 5, np.float32)
    gradients = [np.zeros_like(u[:, :, a : b + 1]) if needed else nothing for a, b in ranges]
    inputs = u, local, sides, np.linalg.det(sides), np.float32(bound), logarithmic
    in_parallel([partial(corner_loop, *inputs, sums[k], gradients[k], *rows) for k, rows in enumerate(ranges)])
    value = torch.from_numpy(sums.sum(0).astype(np.float32))
    if not needed:
        return value, None
    total = np.zeros_like(u) if len(ranges) > 1 else gradients[0]
    if len(ranges) > 1:
        for (a, b), part in zip(ranges, gradients, strict=True):
            total[:, :, a : b + 1] += part
    found = torch.from_numpy(total)
    for axis in single:
        found = found.sum(axis, keepdim=True)
    return value, found[:, :ndim].reshape(displacement.shape)


def _doubled(values: Tensor, axes: list[int]) -> Tensor:
    """Repeat the only sample of some axes: an axis of one sample is a cell without a slope."""
    for axis in axes:
        values = torch.cat([values, values], axis)
    return values


@compiled
def _edges(u: Array, sides: Array, z: int, y: int, along_x: Array, along_y: Array, along_z: Array) -> None:
    """Compute the moved edges of a row of cells: along x from four rows of samples, along y and z from two each."""
    n = u.shape[3]
    for c in range(3):
        for k in range(2):
            for j in range(2):
                row, out = u[c, z + k, y + j], along_x[k, j, c]
                for x in range(n - 1):
                    out[x] = row[x + 1] - row[x] + sides[c, 0]
            low, high, out = u[c, z + k, y], u[c, z + k, y + 1], along_y[k, c]
            for x in range(n):
                out[x] = high[x] - low[x] + sides[c, 1]
            low, high, out = u[c, z, y + k], u[c, z + 1, y + k], along_z[k, c]
            for x in range(n):
                out[x] = high[x] - low[x] + sides[c, 2]


@compiled
def _pull_edges(found: Array, z: int, y: int, along_x: Array, along_y: Array, along_z: Array) -> None:
    """Add the gradient of :func:`_edges` for the samples."""
    n = found.shape[3]
    for c in range(3):
        for k in range(2):
            for j in range(2):
                row, pull = found[c, z + k, y + j], along_x[k, j, c]
                for x in range(n - 1):
                    row[x + 1] += pull[x]
                for x in range(n - 1):
                    row[x] -= pull[x]
            low, high, pull = found[c, z + k, y], found[c, z + k, y + 1], along_y[k, c]
            for x in range(n):
                low[x] -= pull[x]
                high[x] += pull[x]
            low, high, pull = found[c, z, y + k], found[c, z + 1, y + k], along_z[k, c]
            for x in range(n):
                low[x] -= pull[x]
                high[x] += pull[x]


@compiled
def _volumes(e: Array, f: Array, g: Array, side: int, scale: float, out: Array) -> None:
    """Compute the determinants of a row of edges; those along y and z begin at ``side``."""
    a, b, c = e[0], e[1], e[2]
    d, h, i, p, q, r = f[0][side:], f[1][side:], f[2][side:], g[0][side:], g[1][side:], g[2][side:]
    for x in range(len(out)):
        minor = a[x] * (h[x] * r[x] - i[x] * q[x]) - b[x] * (d[x] * r[x] - i[x] * p[x])
        out[x] = (minor + c[x] * (d[x] * q[x] - h[x] * p[x])) * scale


@compiled
def _add_cross(pull: Array, e: Array, f: Array, out: Array, sides: tuple[int, int, int]) -> None:
    """Add ``pull (e x f)``, the slope of a volume with its third edge; each begins at one of the ``sides``."""
    i, j, k = sides
    a, b, c, p, q, r = e[0][i:], e[1][i:], e[2][i:], f[0][j:], f[1][j:], f[2][j:]
    u, v, w = out[0][k:], out[1][k:], out[2][k:]
    for x in range(len(pull)):
        u[x] += pull[x] * (b[x] * r[x] - c[x] * q[x])
        v[x] += pull[x] * (c[x] * p[x] - a[x] * r[x])
        w[x] += pull[x] * (a[x] * q[x] - b[x] * p[x])


@compiled
def _penalize(volume: Array, bound: float, logarithmic: bool, cost: Array, slope: Array) -> None:
    """Compute the penalty of each volume, and its derivative."""
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    if logarithmic:
        lowest = np.float32(math.log(bound))
        for x in range(len(volume)):
            det = volume[x]
            log = np.log(det) if det > bound else lowest + (det - bound) / bound
            cost[x], slope[x] = log * log, two * log / (det if det > bound else bound)
    else:
        for x in range(len(volume)):
            short = bound - volume[x]
            cost[x], slope[x] = (short, -one) if short > zero else (zero, zero)


@compiled
def corner_loop(
    field: Array,
    weight: Array,
    sides: Array,
    volumes: Array,
    bound: float,
    logarithmic: bool,
    sums: Array,
    found: Array,
    first: int,
    last: int,
) -> None:
    """Sum over the cells ``first`` to ``last``; plane 0 of the gradient ``found`` is ``first``."""
    batch, _, nz, ny, nx = field.shape
    share = 1 / (8.0 * (nz - 1) * (ny - 1) * (nx - 1))
    along_x, along_y = np.empty((2, 2, 3, nx - 1), np.float32), np.empty((2, 3, nx), np.float32)
    along_z = np.empty((2, 3, nx), np.float32)
    back_x, back_y, back_z = np.empty_like(along_x), np.empty_like(along_y), np.empty_like(along_z)
    volume, cost, slope = np.empty(nx - 1, np.float32), np.empty(nx - 1, np.float32), np.empty(nx - 1, np.float32)
    counts, total = np.ones(nx - 1, np.float32), np.empty(nx - 1)
    for b in range(batch):
        scale = np.float32(1 / volumes[b % len(volumes)])
        factor = np.float32(share) * scale
        total[:] = 0
        for z in range(first, last):
            for y in range(ny - 1):
                _edges(field[b], sides[b % len(sides)], z, y, along_x, along_y, along_z)
                if weight.size > 1:
                    w = weight[b % len(weight), 0, z : z + 2, y : y + 2]
                    for x in range(nx - 1):
                        low = w[0, 0, x] + w[0, 1, x] + w[1, 0, x] + w[1, 1, x]
                        high = w[0, 0, x + 1] + w[0, 1, x + 1] + w[1, 0, x + 1] + w[1, 1, x + 1]
                        counts[x] = (low + high) / np.float32(8)
                back_x[:] = 0
                back_y[:] = 0
                back_z[:] = 0
                for k in range(2):
                    for j in range(2):
                        for i in range(2):
                            e, f, g = along_x[k, j], along_y[k], along_z[j]
                            _volumes(e, f, g, i, scale, volume)
                            _penalize(volume, bound, logarithmic, cost, slope)
                            for x in range(nx - 1):
                                total[x] += counts[x] * cost[x]
                                slope[x] *= counts[x] * factor
                            if len(found) > 0:
                                _add_cross(slope, f, g, back_x[k, j], (i, i, 0))
                                _add_cross(slope, g, e, back_y[k], (i, 0, i))
                                _add_cross(slope, e, f, back_z[j], (0, i, i))
                if len(found) > 0:
                    _pull_edges(found[b], z - first, y, back_x, back_y, back_z)
        sums[b] += total.sum() * share
