"""Distances between patches around a voxel, and the loss of MIND; see :mod:`learnreg.similarity.mind`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, optional, parts, volumes

Pairs = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]


def _starts(pairs: Pairs) -> Array:
    """Return the first sample ``(K, 2, 3)`` of the two shifted images of each pair; a missing axis is not shifted."""
    return np.array([[(0,) * (3 - len(step)) + tuple(step) for step in pair] for pair in pairs], np.int64)


def pair_means(padded: Tensor, seen: Tensor | None, *, pairs: Pairs, shape: tuple[int, ...], radius: int) -> Tensor:
    """Compute the means of ``w (I(x + a) - I(x + b))^2`` in box windows, for pairs of steps ``a, b``.

    Args:
        padded: ``(B, C, *larger)``, the image ``I`` with a border.
        seen: ``(B or 1, 1, *larger)``; ``w`` is its product at both places. ``None`` is 1.
        pairs: The two places as their distance from the first sample of ``padded``, ``K`` in all.
        shape: Of the image without its border.
        radius: Of the window, which is cropped at the border.

    Returns:
        ``(B, C, K, *shape)``.
    """
    values, mask = array(volumes(padded)), optional(seen)
    grid = (1,) * (3 - len(shape)) + tuple(shape)
    found = np.empty((*values.shape[:2], len(pairs), *grid), np.float32)
    inputs = values, mask, _starts(pairs), radius, found
    in_parallel([partial(pairs_loop, *inputs, *rows) for rows in parts(grid[0], found.size)])
    return torch.from_numpy(found).reshape(*padded.shape[:2], len(pairs), *shape)


def pair_gradient(padded: Tensor, seen: Tensor | None, outer: Tensor, *, pairs: Pairs, radius: int) -> Tensor:
    """Return the gradient of :func:`pair_means` for ``padded``."""
    values, mask = array(volumes(padded)), optional(seen)
    pull = array(outer if outer.ndim == 6 else outer.unsqueeze(3))
    ranges = parts(pull.shape[3], pull.size)
    sums = [np.zeros_like(values) for _ in ranges]  # added in order: no races, and the same result in each run
    inputs = values, mask, _starts(pairs), radius, pull
    in_parallel([partial(pairs_gradient_loop, *inputs, total, *rows) for rows, total in zip(ranges, sums, strict=True)])
    return torch.from_numpy(sum(sums[1:], sums[0])).reshape(padded.shape)


def descriptor_loss(
    distance: Tensor, needed: bool, *, known: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Compute the mean squared difference of the descriptors of two images; see :func:`learnreg.similarity.mind_loss`.

    Args:
        distance: ``(B, C, K, *grid)``, of one image.
        needed: Whether to compute the gradient.
        known: ``(B or 1, C K, *grid)``, the descriptor of the other image.
        weights: ``(B or 1, 1, *grid)``, of the voxels; ``None`` is 1.

    Returns:
        ``(B,)`` and the gradient.
    """
    d = array(distance if distance.ndim == 6 else distance.unsqueeze(3))
    other, counted = array(volumes(known)), optional(weights)
    ranges = parts(d.shape[3], d.size)
    least, typical = np.empty((2, *d.shape[:2], *d.shape[3:]), np.float32)
    sums = np.zeros((len(ranges), *d.shape[:2]))
    in_parallel([partial(typical_loop, d, least, typical, sums[k], *rows) for k, rows in enumerate(ranges)])
    overall = (sums.sum(0) / d[0, 0, 0].size).astype(np.float32)
    total = np.full(len(d), float(d[0, 0, 0].size)) if weights is None else counted.sum((1, 2, 3, 4), np.float64)
    total = np.maximum(total * d.shape[1] * d.shape[2], 1e-6) + np.zeros(len(d))
    gradient, values, pulls = np.empty_like(d), np.zeros((len(ranges), len(d))), np.zeros_like(sums)
    given = d, other, counted, total, overall, least, typical, gradient
    in_parallel([partial(descriptor_loop, *given, values[k], pulls[k], *rows) for k, rows in enumerate(ranges)])
    value = torch.from_numpy(values.sum(0).astype(np.float32))
    if not needed:
        return value, None
    pull = (pulls.sum(0) / d[0, 0, 0].size).astype(np.float32)
    in_parallel([partial(descriptor_gradient_loop, d, least, typical, pull, gradient, *rows) for rows in ranges])
    return value, torch.from_numpy(gradient).reshape(distance.shape)


@compiled
def _squares(image: Array, mask: Array, places: Array, z: int, plane: Array) -> None:
    """Compute the weighted squared differences of plane ``z``."""
    ny, nx = plane.shape
    (az, ay, ax), (bz, by, bx) = places[0], places[1]
    for y in range(ny):
        first, second, out = image[z + az, y + ay][ax:], image[z + bz, y + by][bx:], plane[y]
        for x in range(nx):
            apart = first[x] - second[x]
            out[x] = apart * apart
        if mask.size > 1:
            one, other = mask[z + az, y + ay][ax:], mask[z + bz, y + by][bx:]
            for x in range(nx):
                out[x] *= one[x] * other[x]


@compiled
def _box(plane: Array, radius: int, wide: Array, total: Array) -> None:
    """Sum a plane in cropped square windows."""
    ny, nx = plane.shape
    for y in range(ny):
        row, out = plane[y], wide[y]
        out[:] = row
        for d in range(1, min(radius, nx - 1) + 1):
            for x in range(nx - d):
                out[x] += row[x + d]
            for x in range(nx - d):
                out[x + d] += row[x]
    for y in range(ny):
        out = total[y]
        out[:] = 0
        for j in range(max(y - radius, 0), min(y + radius + 1, ny)):
            row = wide[j]
            for x in range(nx):
                out[x] += row[x]


@compiled
def _shares(n: int, radius: int) -> Array:
    """Return the reciprocal of the number of samples in each window."""
    share = np.empty(n, np.float32)
    for i in range(n):
        share[i] = 1 / (min(i + radius + 1, n) - max(i - radius, 0))
    return share


@compiled
def pairs_loop(images: Array, mask: Array, places: Array, radius: int, found: Array, first: int, last: int) -> None:
    """Fill the planes ``first`` to ``last`` of ``found``, ``(B, C, K, nz, ny, nx)``."""
    batch, channels, count, nz, ny, nx = found.shape
    width = 2 * radius + 1
    share_z, share_y, share_x = _shares(nz, radius), _shares(ny, radius), _shares(nx, radius)
    plane, wide = np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32)
    held, kept = np.empty(width, np.int64), np.empty((width, ny, nx), np.float32)
    for b in range(batch):
        seen = mask[b % len(mask), 0]
        for c in range(channels):
            for k in range(count):
                held[:] = -1
                for z in range(first, last):
                    out = found[b, c, k, z]
                    out[:] = 0
                    for p in range(max(z - radius, 0), min(z + radius + 1, nz)):
                        if held[p % width] != p:
                            held[p % width] = p
                            _squares(images[b, c], seen, places[k], p, plane)
                            _box(plane, radius, wide, kept[p % width])
                        summed, total = kept[p % width].reshape(-1), out.reshape(-1)
                        for i in range(len(total)):
                            total[i] += summed[i]
                    for y in range(ny):
                        share, row = share_z[z] * share_y[y], out[y]
                        for x in range(nx):
                            row[x] *= share * share_x[x]


@compiled
def pairs_gradient_loop(
    images: Array, mask: Array, places: Array, radius: int, outer: Array, found: Array, first: int, last: int
) -> None:
    """Add the gradient from the squared differences of the planes ``first`` to ``last``."""
    batch, channels, count, nz, ny, nx = outer.shape
    width, two = 2 * radius + 1, np.float32(2)
    share_z, share_y, share_x = _shares(nz, radius), _shares(ny, radius), _shares(nx, radius)
    plane, wide, pull = (np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32), np.empty((ny, nx), np.float32))
    held, kept = np.empty(width, np.int64), np.empty((width, ny, nx), np.float32)
    for b in range(batch):
        seen = mask[b % len(mask), 0]
        for c in range(channels):
            for k in range(count):
                (az, ay, ax), (bz, by, bx) = places[k, 0], places[k, 1]
                held[:] = -1
                for z in range(first, last):
                    pull[:] = 0
                    for p in range(max(z - radius, 0), min(z + radius + 1, nz)):
                        if held[p % width] != p:
                            held[p % width] = p
                            for y in range(ny):
                                share, row, out = share_z[p] * share_y[y], outer[b, c, k, p, y], plane[y]
                                for x in range(nx):
                                    out[x] = row[x] * (share * share_x[x])
                            _box(plane, radius, wide, kept[p % width])
                        summed, total = kept[p % width].reshape(-1), pull.reshape(-1)
                        for i in range(len(total)):
                            total[i] += summed[i]
                    for y in range(ny):
                        row = pull[y]
                        one, other = images[b, c, z + az, y + ay][ax:], images[b, c, z + bz, y + by][bx:]
                        for x in range(nx):
                            row[x] *= two * (one[x] - other[x])
                        if mask.size > 1:
                            one, other = seen[z + az, y + ay][ax:], seen[z + bz, y + by][bx:]
                            for x in range(nx):
                                row[x] *= one[x] * other[x]
                        one, other = found[b, c, z + az, y + ay][ax:], found[b, c, z + bz, y + by][bx:]
                        for x in range(nx):
                            one[x] += row[x]
                        for x in range(nx):
                            other[x] -= row[x]


@compiled
def typical_loop(distance: Array, least: Array, typical: Array, sums: Array, first: int, last: int) -> None:
    """Compute the least distance and the mean of the distances above it, and sum the latter."""
    batch, channels, count, _, ny, nx = distance.shape
    columns = np.empty(nx)
    for b in range(batch):
        for c in range(channels):
            columns[:] = 0
            for z in range(first, last):
                for y in range(ny):
                    lowest, mean = least[b, c, z, y], typical[b, c, z, y]
                    lowest[:] = distance[b, c, 0, z, y]
                    for k in range(1, count):
                        row = distance[b, c, k, z, y]
                        for x in range(nx):
                            lowest[x] = min(lowest[x], row[x])
                    mean[:] = 0
                    for k in range(count):
                        row = distance[b, c, k, z, y]
                        for x in range(nx):
                            mean[x] += row[x] - lowest[x]
                    for x in range(nx):
                        mean[x] /= np.float32(count)
                        columns[x] += mean[x]
            sums[b, c] = columns.sum()


@compiled
def descriptor_loop(
    distance: Array,
    known: Array,
    weights: Array,
    totals: Array,
    overall: Array,
    least: Array,
    typical: Array,
    gradient: Array,
    values: Array,
    pulls: Array,
    first: int,
    last: int,
) -> None:
    """Sum the squared differences; turn ``typical`` into its gradient, and add up that for ``overall``.

    ``gradient`` becomes that for the distances above the least one.
    """
    batch, channels, count, _, ny, nx = distance.shape
    ones, two, zero = np.ones(nx, np.float32), np.float32(2), np.float32(0)
    thousand, thousandth, tiny = np.float32(1e3), np.float32(1e-3), np.float32(1e-8)
    columns, scale, back = np.empty(nx), np.empty(nx, np.float32), np.empty(nx, np.float32)
    for b in range(batch):
        columns[:] = 0
        share = np.float32(1 / totals[b])
        for c in range(channels):
            high, low = thousand * overall[b, c], thousandth * overall[b, c]
            for z in range(first, last):
                for y in range(ny):
                    counts = weights[b % len(weights), 0, z, y] if weights.size > 1 else ones
                    lowest, mean = least[b, c, z, y], typical[b, c, z, y]
                    back[:] = 0
                    for x in range(nx):
                        scale[x] = np.float32(1) / max(max(min(mean[x], high), low), tiny)
                    for k in range(count):
                        row, other = distance[b, c, k, z, y], known[b % len(known), c * count + k, z, y]
                        pull = gradient[b, c, k, z, y]
                        for x in range(nx):
                            above = (row[x] - lowest[x]) * scale[x]
                            value = np.exp(-above)
                            apart = value - other[x]
                            weight = counts[x] * share
                            columns[x] += weight * apart * apart
                            slope = two * weight * apart * value * scale[x]
                            pull[x] = -slope
                            back[x] += slope * above
                    for x in range(nx):
                        if mean[x] < low or mean[x] > high:
                            limit = low if mean[x] < low else high
                            factor = thousandth if mean[x] < low else thousand
                            pulls[b, c] += factor * back[x] if limit >= tiny else zero
                            mean[x] = zero
                        else:
                            mean[x] = back[x] if mean[x] >= tiny else zero
        values[b] += columns.sum()


@compiled
def descriptor_gradient_loop(
    distance: Array, least: Array, typical: Array, pull: Array, gradient: Array, first: int, last: int
) -> None:
    """Complete the gradient: each distance moves the typical one, and the least, or its equals, all of them."""
    batch, channels, count, _, ny, nx = distance.shape
    total, equal = np.empty(nx, np.float32), np.empty(nx, np.float32)
    for b in range(batch):
        for c in range(channels):
            for z in range(first, last):
                for y in range(ny):
                    lowest, back = least[b, c, z, y], typical[b, c, z, y]
                    total[:] = 0
                    equal[:] = 0
                    for k in range(count):
                        row, out = distance[b, c, k, z, y], gradient[b, c, k, z, y]
                        for x in range(nx):
                            out[x] += (back[x] + pull[b, c]) / np.float32(count)
                            total[x] += out[x]
                            equal[x] += np.float32(1) if row[x] == lowest[x] else np.float32(0)
                    for k in range(count):
                        row, out = distance[b, c, k, z, y], gradient[b, c, k, z, y]
                        for x in range(nx):
                            out[x] -= total[x] / equal[x] if row[x] == lowest[x] else np.float32(0)
