"""Squared differences of a field, with their gradient, in one pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, optional, parts, volumes


def diffusion(field: Tensor, needed: bool, *, shares: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Compute ``sum_axis share / cells sum |difference|^2``.

    Args:
        field: ``(B, D, *grid)``.
        needed: Whether to compute the gradient.
        shares: ``(D, N)``, factor of the mean square along each array axis.
        weight: ``(B or 1, 1, *grid)``, factor at the samples; a difference gets the mean of two. ``None`` is 1.

    Returns:
        ``(B,)`` and the gradient.
    """
    return _scored(diffusion_loop, field, needed, shares, weight)


def bending(field: Tensor, needed: bool, *, shares: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Compute ``sum_ij sqrt(share_i share_j) / cells sum |second difference|^2`` over all pairs of axes.

    Args:
        field: ``(B, D, *grid)``.
        needed: Whether to compute the gradient.
        shares: ``(D, N)``, factor per array axis; an axis of fewer than 3 samples is left out.
        weight: ``(B or 1, 1, *grid)``, factor at the samples; a difference gets the mean of those around it. ``None``
            is 1.

    Returns:
        ``(B,)`` and the gradient.
    """
    u, local = array(volumes(field)), optional(weight)
    factors = np.zeros((shares.shape[1], 3), np.float32)
    factors[:, 3 - len(shares) :] = array(shares.T)
    nz = u.shape[2]
    ranges = parts(nz, u[:, 0].size)
    sums, nothing = np.zeros((len(ranges), len(u))), np.zeros((0,) * 5, np.float32)
    reaches = [(max(a - 1, 0), min(b + 1, nz)) for a, b in ranges]
    gradients = [np.zeros_like(u[:, :, a:b]) if needed else nothing for a, b in reaches]
    in_parallel(
        [
            partial(bending_loop, u, factors, local, sums[k], gradients[k], reaches[k][0], *rows)
            for k, rows in enumerate(ranges)
        ]
    )
    value = torch.from_numpy(sums.sum(0).astype(np.float32))
    if not needed:
        return value, None
    total = np.zeros_like(u) if len(ranges) > 1 else gradients[0]
    if len(ranges) > 1:  # each part has its own sums, which are added in order
        for (a, b), part in zip(reaches, gradients, strict=True):
            total[:, :, a:b] += part
    return value, torch.from_numpy(total).reshape(field.shape)


def _scored(
    loop: Any, field: Tensor, needed: bool, shares: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    u, local = array(volumes(field)), optional(weight)
    factors = np.zeros((shares.shape[1], 3), np.float32)
    factors[:, 3 - len(shares) :] = array(shares.T)
    gradient = np.empty_like(u if needed else u[:0])
    ranges = parts(u.shape[2], u[:, 0].size)
    sums = np.zeros((len(ranges), len(u)))
    in_parallel([partial(loop, u, factors, local, sums[k], gradient, *rows) for k, rows in enumerate(ranges)])
    value = torch.from_numpy(sums.sum(0).astype(np.float32))
    return value, torch.from_numpy(gradient).reshape(field.shape) if needed else None


@compiled
def _row(weight: Array, b: int, z: int, y: int, ones: Array) -> Array:
    """Return a row of the weights; ones if they are a single one."""
    return weight[b % len(weight), 0, z, y] if weight.size > 1 else ones


@compiled
def diffusion_loop(
    field: Array, shares: Array, weight: Array, sums: Array, gradient: Array, first: int, last: int
) -> None:
    """Sum the planes ``first`` to ``last``, and fill their gradient."""
    batch, channels, nz, ny, nx = field.shape
    ones, total = np.ones(nx, np.float32), np.empty(nx)
    slope, pull = np.empty(nx, np.float32), np.empty(nx, np.float32)
    half, two = np.float32(0.5), np.float32(2)
    for b in range(batch):
        share = shares[b % len(shares)]
        share_z, share_y = share[0] / (max(nz - 1, 1) * ny * nx), share[1] / (nz * max(ny - 1, 1) * nx)
        share_z, share_y = np.float32(share_z), np.float32(share_y)
        share_x = np.float32(share[2] / (nz * ny * max(nx - 1, 1)))
        for c in range(channels):
            total[:] = 0
            for z in range(first, last):
                for y in range(ny):
                    here, w = field[b, c, z, y], _row(weight, b, z, y, ones)
                    # beyond the border a field has its border value, so no difference
                    south, north = max(y - 1, 0), min(y + 1, ny - 1)
                    below, above = max(z - 1, 0), min(z + 1, nz - 1)
                    u0, u1, v0, v1 = (
                        field[b, c, z, south],
                        field[b, c, z, north],
                        field[b, c, below, y],
                        field[b, c, above, y],
                    )
                    p0, p1 = _row(weight, b, z, south, ones), _row(weight, b, z, north, ones)
                    q0, q1 = _row(weight, b, below, y, ones), _row(weight, b, above, y, ones)
                    for x in range(nx):
                        u, m = here[x], half * w[x]
                        after_y, after_z = u1[x] - u, v1[x] - u
                        pull_y = share_y * (half * p1[x] + m) * after_y
                        pull_z = share_z * (half * q1[x] + m) * after_z
                        total[x] += pull_y * after_y + pull_z * after_z
                        pull_y += share_y * (half * p0[x] + m) * (u0[x] - u)
                        pull_z += share_z * (half * q0[x] + m) * (v0[x] - u)
                        slope[x] = pull_y + pull_z
                    for x in range(nx - 1):
                        after = here[x + 1] - here[x]
                        pull[x] = share_x * half * (w[x] + w[x + 1]) * after
                        total[x] += pull[x] * after
                    if len(gradient) > 0:
                        out = gradient[b, c, z, y]
                        pull[nx - 1] = 0
                        out[0] = -two * (slope[0] + pull[0])
                        for x in range(1, nx):
                            out[x] = -two * (slope[x] + pull[x] - pull[x - 1])
            sums[b] += total.sum()


@compiled
def _bend(a: Array, b: Array, c: Array, weight: Array, share: float, total: Array, pull: Array) -> None:
    """Square the second difference ``a - 2 b + c`` of rows into ``total``; half of its slope is ``pull``."""
    two = np.float32(2)
    for x in range(len(pull)):
        difference = a[x] - two * b[x] + c[x]
        pull[x] = share * weight[x] * difference
        total[x] += pull[x] * difference


@compiled
def _twist(a: Array, b: Array, c: Array, d: Array, weight: Array, share: float, total: Array, pull: Array) -> None:
    """Square the mixed difference ``a - b - c + d`` of rows into ``total``; half of its slope is ``pull``."""
    for x in range(len(pull)):
        difference = (a[x] - b[x]) - (c[x] - d[x])
        pull[x] = share * weight[x] * difference
        total[x] += pull[x] * difference


@compiled
def _add(weight: float, row: Array, out: Array) -> None:
    """Add ``weight row`` to a row."""
    for x in range(len(row)):
        out[x] += weight * row[x]


@compiled
def _mean(a: Array, b: Array, c: Array, d: Array, out: Array) -> None:
    """Average four rows."""
    for x in range(len(out)):
        out[x] = np.float32(0.25) * ((a[x] + b[x]) + (c[x] + d[x]))


@compiled
def bending_loop(
    field: Array, shares: Array, weight: Array, sums: Array, found: Array, offset: int, first: int, last: int
) -> None:
    """Sum the differences that begin or are centered in the planes ``first`` to ``last``.

    Plane 0 of the gradient ``found`` is ``offset``. A mixed difference counts twice, as ``ij`` and ``ji``.
    """
    batch, channels, nz, ny, nx = field.shape
    deep, high, wide = nz >= 3, ny >= 3, nx >= 3
    ones, w, total, pull = np.ones(nx, np.float32), np.empty(nx, np.float32), np.empty(nx), np.empty(nx, np.float32)
    two, four, needed = np.float32(2), np.float32(4), len(found) > 0
    for b in range(batch):
        rz, ry, rx = shares[b % len(shares)]
        zz, yy = np.float32(rz * rz / max((nz - 2) * ny * nx, 1)), np.float32(ry * ry / max(nz * (ny - 2) * nx, 1))
        xx = np.float32(rx * rx / max(nz * ny * (nx - 2), 1))
        zy = np.float32(2 * rz * ry / max((nz - 1) * (ny - 1) * nx, 1))
        zx = np.float32(2 * rz * rx / max((nz - 1) * ny * (nx - 1), 1))
        yx = np.float32(2 * ry * rx / max(nz * (ny - 1) * (nx - 1), 1))
        total[:] = 0
        for c in range(channels):
            u, g = field[b, c], found[b, c] if needed else field[b, c]
            for z in range(first, last):
                for y in range(ny):
                    here, near, gz = u[z, y], _row(weight, b, z, y, ones), z - offset
                    if deep and 0 < z < nz - 1:
                        _bend(u[z - 1, y], here, u[z + 1, y], near, zz, total, pull)
                        if needed:
                            _add(two, pull, g[gz - 1, y])
                            _add(-four, pull, g[gz, y])
                            _add(two, pull, g[gz + 1, y])
                    if high and 0 < y < ny - 1:
                        _bend(u[z, y - 1], here, u[z, y + 1], near, yy, total, pull)
                        if needed:
                            _add(two, pull, g[gz, y - 1])
                            _add(-four, pull, g[gz, y])
                            _add(two, pull, g[gz, y + 1])
                    if wide:
                        _bend(here[:-2], here[1:-1], here[2:], near[1:], xx, total, pull[:-2])
                        if needed:
                            _add(two, pull[:-2], g[gz, y])
                            _add(-four, pull[:-2], g[gz, y][1:])
                            _add(two, pull[:-2], g[gz, y][2:])
                    if deep and high and z < nz - 1 and y < ny - 1:
                        further, beside = _row(weight, b, z + 1, y, ones), _row(weight, b, z, y + 1, ones)
                        _mean(near, further, beside, _row(weight, b, z + 1, y + 1, ones), w)
                        _twist(u[z + 1, y + 1], u[z + 1, y], u[z, y + 1], here, w, zy, total, pull)
                        if needed:
                            _add(two, pull, g[gz + 1, y + 1])
                            _add(-two, pull, g[gz + 1, y])
                            _add(-two, pull, g[gz, y + 1])
                            _add(two, pull, g[gz, y])
                    if deep and wide and z < nz - 1:
                        above, further = u[z + 1, y], _row(weight, b, z + 1, y, ones)
                        _mean(near[1:], near, further[1:], further, w[:-1])
                        _twist(above[1:], above, here[1:], here, w, zx, total, pull[:-1])
                        if needed:
                            _add(two, pull[:-1], g[gz + 1, y][1:])
                            _add(-two, pull[:-1], g[gz + 1, y])
                            _add(-two, pull[:-1], g[gz, y][1:])
                            _add(two, pull[:-1], g[gz, y])
                    if high and wide and y < ny - 1:
                        north, beside = u[z, y + 1], _row(weight, b, z, y + 1, ones)
                        _mean(near[1:], near, beside[1:], beside, w[:-1])
                        _twist(north[1:], north, here[1:], here, w, yx, total, pull[:-1])
                        if needed:
                            _add(two, pull[:-1], g[gz, y + 1][1:])
                            _add(-two, pull[:-1], g[gz, y + 1])
                            _add(-two, pull[:-1], g[gz, y][1:])
                            _add(two, pull[:-1], g[gz, y])
        sums[b] += total.sum()
