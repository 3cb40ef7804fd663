"""Costs of the displacements within reach of each point, and the mean displacement that they choose."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
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
    points = costs.shape[1]
    chosen = torch.empty_like(near)
    inputs = [array(values) for values in (costs, offsets, near)]
    ends = [(BLOCK * a, min(BLOCK * b, points)) for a, b in parts(math.ceil(points / BLOCK), costs.numel())]
    in_parallel(
        [partial(choices_loop, *inputs, np.float32(coupling), np.float32(softness), chosen.numpy(), *e) for e in ends]
    )
    return chosen


BLOCK = 256  # points whose scores stay in the cache


@compiled
def choices_loop(
    costs: Array, offsets: Array, near: Array, coupling: float, softness: float, chosen: Array, first: int, after: int
) -> None:
    """Fill the points from ``first`` to ``after`` of ``chosen``."""
    count, ndim = offsets.shape
    scores = np.empty((count, BLOCK), np.float32)
    least, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for begin in range(first, after, BLOCK):
        size = min(BLOCK, after - begin)
        for p in range(size):
            least[p], total[p] = np.inf, 0
        for k in range(count):
            for p in range(size):
                scores[k, p] = costs[k, begin + p]
            for d in range(ndim):
                for p in range(size):
                    apart = offsets[k, d] - near[d, begin + p]
                    scores[k, p] += coupling * apart * apart
            for p in range(size):
                least[p] = min(least[p], scores[k, p])
        for d in range(ndim):
            for p in range(size):
                chosen[d, begin + p] = 0
        for k in range(count):
            for p in range(size):
                scores[k, p] = np.exp((least[p] - scores[k, p]) / softness)
                total[p] += scores[k, p]
            for d in range(ndim):
                for p in range(size):
                    chosen[d, begin + p] += offsets[k, d] * scores[k, p]
        for d in range(ndim):
            for p in range(size):
                chosen[d, begin + p] /= total[p]
