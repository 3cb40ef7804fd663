"""Squared differences of a field, with their gradient, in one pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, volumes

NO_WEIGHT = torch.ones(1, 1, 1, 1, 1)


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


def _scored(
    loop: Any, field: Tensor, needed: bool, shares: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    u, local = array(volumes(field)), array(NO_WEIGHT if weight is None else volumes(weight))
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
