"""Costs of the displacements within reach of each point, and the mean displacement that they choose."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts, volumes


def squared_differences(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Compute ``mean_c (fixed(x) - moving(x + step))^2``; outside the grid, features have their border values.

    Args:
        fixed: ``(1, C, *grid)``.
        moving: ``(1, C, *grid)``.
        reach: Largest step along each axis, in samples.

    Returns:
        ``(K, *grid)``, the steps in array order.
    """
    ndim = fixed.ndim - 2
    padded = F.pad(moving, [reach] * (2 * ndim), mode="replicate")
    inputs = [array(volumes(values)[0]) for values in (fixed, padded)]
    found = fixed.new_empty((2 * reach + 1) ** ndim, *inputs[0].shape[1:])
    ranges = parts(found.shape[1], found.numel())
    in_parallel([partial(differences_loop, *inputs, found.numpy(), *rows) for rows in ranges])
    return found.reshape(len(found), *fixed.shape[2:])


@compiled
def differences_loop(fixed: Array, moving: Array, found: Array, first: int, after: int) -> None:
    """Fill the planes from ``first`` to ``after`` of ``found``; ``moving`` is larger by the steps."""
    channels, depth, height, width = fixed.shape
    steps = moving.shape[1] - depth + 1, moving.shape[2] - height + 1, moving.shape[3] - width + 1
    row = np.empty(width, np.float32)
    for z in range(first, after):
        for y in range(height):
            k = 0
            for i in range(steps[0]):
                for j in range(steps[1]):
                    for h in range(steps[2]):
                        row[:] = 0
                        for c in range(channels):
                            here, there = fixed[c, z, y], moving[c, z + i, y + j]
                            for x in range(width):
                                apart = here[x] - there[x + h]
                                row[x] += apart * apart
                        for x in range(width):
                            found[k, z, y, x] = row[x] / channels
                        k += 1


def soft_choices(costs: Tensor, offsets: Tensor, near: Tensor, coupling: float, softness: float) -> Tensor:
    """Compute the mean offset at each point, weighted by ``exp(-(cost + coupling |offset - near|^2) / softness)``.

    Args:
        costs: ``(K, P)``.
        offsets: ``(K, D)``.
        near: ``(D, P)``.
        coupling: At least 0.
        softness: Above 0.

    Returns:
        ``(D, P)``.
    """
    points, ndim = costs.shape[1], len(near)
    chosen = near.new_empty(3, points)
    three = F.pad(offsets, (0, 3 - ndim)), F.pad(near, (0, 0, 0, 3 - ndim))  # of a third axis, everything is 0
    inputs = [array(values) for values in (costs, *three)]
    settings = np.float32(coupling), np.float32(1 / softness), chosen.numpy()
    ends = [(BLOCK * a, min(BLOCK * b, points)) for a, b in parts(math.ceil(points / BLOCK), costs.numel())]
    in_parallel([partial(choices_loop, *inputs, *settings, *e) for e in ends])
    return chosen[:ndim]


BLOCK = 256  # points whose scores stay in the cache
LEAST, SHARE, ONE = np.float32(-64), np.float32(1 / 32), np.float32(1)
TAYLOR = tuple(np.float32(1 / math.factorial(k)) for k in range(2, 7))


@compiled
def exp_of_negative(x: Any) -> Any:
    """Return ``e^x`` for ``x`` of at most 0, to 5e-6 of its value above -10; a loop of it uses vector instructions."""
    y = max(x, LEAST) * SHARE
    c2, c3, c4, c5, c6 = TAYLOR
    root = ONE + y * (ONE + y * (c2 + y * (c3 + y * (c4 + y * (c5 + y * c6)))))
    for _ in range(5):  # (e^(x / 32))^32
        root *= root
    return root


@compiled
def choices_loop(
    costs: Array, offsets: Array, near: Array, coupling: float, sharpness: float, chosen: Array, first: int, after: int
) -> None:
    """Fill the points from ``first`` to ``after`` of ``chosen``.

    A block of points is copied to arrays of its own, so that the loops over it become vector instructions.
    """
    count = len(offsets)
    scores = np.empty((count, BLOCK), np.float32)
    here, mean = np.empty((3, BLOCK), np.float32), np.empty((3, BLOCK), np.float32)
    least, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for begin in range(first, after, BLOCK):
        size = min(BLOCK, after - begin)
        for p in range(size):
            least[p], total[p] = np.inf, 0
            for d in range(3):
                here[d, p], mean[d, p] = near[d, begin + p], 0
        for k in range(count):
            row, cost = scores[k], costs[k, begin : begin + size]
            a, b, c = offsets[k, 0], offsets[k, 1], offsets[k, 2]
            for p in range(size):
                u, v, w = a - here[0, p], b - here[1, p], c - here[2, p]
                row[p] = cost[p] + coupling * (u * u + v * v + w * w)
                least[p] = min(least[p], row[p])
        for k in range(count):
            row = scores[k]
            a, b, c = offsets[k, 0], offsets[k, 1], offsets[k, 2]
            for p in range(size):
                weight = exp_of_negative((least[p] - row[p]) * sharpness)
                total[p] += weight
                mean[0, p] += a * weight
                mean[1, p] += b * weight
                mean[2, p] += c * weight
        for d in range(3):
            for p in range(size):
                chosen[d, begin + p] = mean[d, p] / total[p]
