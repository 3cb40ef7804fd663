"""Means of products in box windows, and the moments of an image, in one pass over the images.

Along z and y a window moves on by adding the plane or row that enters and subtracting the one that leaves; these sums
are in float64, so what was added is subtracted exactly.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, optional, parts, volumes


@lru_cache(maxsize=128)
def windows_of(size: int, width: int, stride: int) -> tuple[Array, ...]:
    """Return the windows along an axis.

    Args:
        size: Number of samples.
        width: Samples in a window that is not cropped, odd.
        stride: Between the centers of two windows.

    Returns:
        Per window its center, its first sample, the one after its last, and the reciprocal of their number; per sample
        the first window that contains it, and the one after the last.
    """
    center = np.arange((size - 1) % stride // 2, size, stride)
    low, high = np.maximum(center - width // 2, 0), np.minimum(center + width // 2 + 1, size)
    sample = np.arange(size)
    first, after = np.searchsorted(high, sample, "right"), np.searchsorted(low, sample, "right")
    whole = (values.astype(np.int64) for values in (center, low, high))
    return *whole, 1 / (high - low), first.astype(np.int64), after.astype(np.int64)


def _windows(shape: tuple[int, ...], width: int, stride: int) -> tuple[tuple[Array, ...], ...]:
    """Return the windows along three axes; a missing one has a single sample."""
    return (windows_of(1, 3, 1),) * (3 - len(shape)) + tuple(windows_of(n, width, stride) for n in shape)


def product_means(
    x: Tensor, y: Tensor, mask: Tensor | None, center: Tensor | None, scale: Tensor | None, width: int, stride: int
) -> Tensor:
    """Compute the means of ``a``, ``a^2`` and ``a y`` in windows, with ``a = (x - center) scale``.

    Args:
        x: ``(B, C, *grid)``.
        y: ``(B or 1, C, *grid)``.
        mask: ``(B or 1, C or 1, *grid)``, factor of the products; ``None`` is 1.
        center: ``(B, C, 1, ...)``; ``None`` is 0.
        scale: ``(B, C, 1, ...)``; ``None`` is 1.
        width: Samples in a window along each axis, odd; at the border a window is cropped.
        stride: Between the centers of two windows.

    Returns:
        ``(B, 3 C, *windows)``.
    """
    axes = _windows(tuple(x.shape[2:]), width, stride)
    means = x.new_empty(len(x), 3 * x.shape[1], *[len(axis[0]) for axis in axes])
    inputs = *_arrays(x, y, mask, center, scale), axes, width, means.numpy()
    in_parallel([partial(means_loop, *inputs, *rows) for rows in parts(means.shape[2], x.numel())])
    return means.reshape(*means.shape[:2], *means.shape[-x.ndim + 2 :])


def product_gradients(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    center: Tensor | None,
    scale: Tensor | None,
    outer: Tensor,
    width: int,
    stride: int,
    y_needed: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of :func:`product_means` for ``x`` and for ``y``.

    ``center`` and ``scale`` are those of :func:`moments` of ``x``, and change with it.
    """
    inputs = _arrays(x, y, mask, center, scale)
    axes = _windows(tuple(x.shape[2:]), width, stride)
    for_x, for_y = np.empty_like(inputs[0]), np.empty_like(inputs[0] if y_needed else inputs[0][:0])
    ranges = parts(inputs[0].shape[2], x.numel())
    sums = np.zeros((len(ranges), 2, *x.shape[:2]))
    given = *inputs, axes, width, array(volumes(outer)), for_x, for_y
    in_parallel([partial(gradients_loop, *given, sums[k], *rows) for k, rows in enumerate(ranges)])
    if scale is not None:
        count = (
            np.full((len(x), 1), float(inputs[0][0, 0].size)) if mask is None else inputs[2].sum((2, 3, 4)).clip(1e-6)
        )
        pull = (sums.sum(0) / count).astype(np.float32)
        in_parallel([partial(standardization_loop, inputs[0], *inputs[2:], pull, for_x, *rows) for rows in ranges])
    if y_needed and len(y) < len(x):
        for_y = for_y.sum(0, keepdims=True)
    return torch.from_numpy(for_x).reshape(x.shape), torch.from_numpy(for_y).reshape(y.shape) if y_needed else None


def correlations(
    means: Tensor,
    needed: bool,
    *,
    known: tuple[Tensor, Tensor],
    share: Tensor | None,
    weights: Tensor | None,
    floor: float,
    squared: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute one minus the mean correlation over windows; see :func:`learnreg.similarity.lncc.lncc_loss`.

    Args:
        means: ``(B, 3 C, *windows)``, of :func:`product_means`.
        needed: Whether to compute the gradient.
        known: Mean and variance ``(B or 1, C, *windows)`` of the other image.
        share: ``(B or 1, C or 1, *windows)``, divides the means; ``None`` is 1.
        weights: ``(B or 1, C or 1, *windows)``, of the windows; ``None`` is 1.
        floor: Added to each variance.
        squared: Whether to square the correlation.

    Returns:
        ``(B,)`` and the gradient.
    """
    values = array(volumes(means))
    given = [array(volumes(t)) for t in known]
    given += [optional(t) for t in (share, weights)]
    channels = values.shape[1] // 3
    counted = np.full(len(values), float(channels * values[0, 0].size))
    if weights is not None:
        counted[:] = given[3].sum((1, 2, 3, 4)) * (channels // given[3].shape[1])
    gradient = np.empty_like(values if needed else values[:0])
    ranges = parts(values.shape[2], values[:, 0].size)
    sums = np.zeros((len(ranges), len(values)))
    inputs = values, *given, counted.clip(1e-6), np.float32(floor), squared, gradient
    in_parallel([partial(correlations_loop, *inputs, sums[k], *rows) for k, rows in enumerate(ranges)])
    value = torch.from_numpy((1 - sums.sum(0)).astype(np.float32))
    return value, torch.from_numpy(gradient).reshape(means.shape) if needed else None


def moments(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute mean and variance per image and channel, ``(B, C, 1, ...)``, over a mask.

    Args:
        values: ``(B, C, *grid)``.
        mask: ``(B or 1, C or 1, *grid)``, weights; ``None`` is 1.
    """
    x, _, weights, _, _ = _arrays(values, values, mask, None, None)
    ranges = parts(x.shape[2], values.numel())
    sums = np.zeros((len(ranges), 3, *values.shape[:2]))
    in_parallel([partial(moments_loop, x, weights, sums[k], *rows) for k, rows in enumerate(ranges)])
    weight, total, square = sums.sum(0)
    weight = np.maximum(weight, 1e-6)
    origin = x[:, :, 0, 0, 0]  # the sums are those of the differences to it, of which none is large
    mean, variance = origin + total / weight, np.maximum(square / weight - (total / weight) ** 2, 0)
    shape = *values.shape[:2], *[1] * (values.ndim - 2)
    return tuple(torch.from_numpy(v.astype(np.float32)).reshape(shape) for v in (mean, variance))  # type: ignore[return-value]


def _arrays(
    x: Tensor, y: Tensor, mask: Tensor | None, center: Tensor | None, scale: Tensor | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Return arrays with three spatial axes; a mask of a single voxel is none."""
    places = x.new_zeros(x.shape[:2]) if center is None else center.reshape(x.shape[:2])
    factors = x.new_ones(x.shape[:2]) if scale is None else scale.reshape(x.shape[:2])
    return array(volumes(x)), array(volumes(y)), optional(mask), array(places), array(factors)


@compiled
def _add_row(x: Any, y: Any, weights: Any, center: float, scale: float, sign: float, sums: Array) -> None:
    """Add the products of a row to ``(3, nx)`` sums, or subtract them."""
    for i in range(len(x)):
        a = (x[i] - center) * scale
        weighted = a * weights[i]
        sums[0, i] += sign * weighted
        sums[1, i] += sign * (weighted * a)
        sums[2, i] += sign * (weighted * y[i])


@compiled
def _box(padded: Array, width: int, total: Array) -> None:
    """Sum ``width`` neighbors along a row that has zeros beyond its ends."""
    for i in range(len(total)):
        total[i] = padded[i]
    for d in range(1, width):
        for i in range(len(total)):
            total[i] += padded[i + d]


@compiled
def means_loop(
    x: Array,
    y: Array,
    mask: Array,
    center: Array,
    scale: Array,
    axes: Any,
    width: int,
    means: Array,
    first: int,
    last: int,
) -> None:
    """Fill the planes ``first`` to ``last`` of ``means``, ``(B, 3 C, oz, oy, ox)``."""
    batch, channels, _, _, nx = x.shape
    _, low_z, high_z, share_z, _, _ = axes[0]
    _, low_y, high_y, share_y, _, _ = axes[1]
    center_x, _, _, share_x, _, _ = axes[2]
    oy, ox, half = len(low_y), len(center_x), width // 2
    kept, sums = np.empty((width, 3, oy, ox), np.float32), np.empty((3, oy, ox))
    row, padded, total = np.empty((3, nx)), np.zeros(nx + 2 * half), np.empty(nx)
    ones = np.ones(nx, np.float32)
    for b in range(batch):
        for c in range(channels):
            by, bm, cm = b % len(y), b % len(mask), c % mask.shape[1]
            sums[:] = 0
            entered = left = low_z[first]
            for k in range(first, last):
                while left < low_z[k]:
                    if left < entered:
                        for p in range(3):
                            for j in range(oy):
                                for i in range(ox):
                                    sums[p, j, i] -= kept[left % width, p, j, i]
                    left += 1
                entered = max(entered, left)
                while entered < high_z[k]:
                    row[:] = 0
                    below = above = 0
                    for j in range(oy):
                        while above < high_y[j]:
                            weights = mask[bm, cm, entered, above] if mask.size > 1 else ones
                            xs, ys = x[b, c, entered, above], y[by, c, entered, above]
                            _add_row(xs, ys, weights, center[b, c], scale[b, c], 1.0, row)
                            above += 1
                        while below < low_y[j]:
                            weights = mask[bm, cm, entered, below] if mask.size > 1 else ones
                            xs, ys = x[b, c, entered, below], y[by, c, entered, below]
                            _add_row(xs, ys, weights, center[b, c], scale[b, c], -1.0, row)
                            below += 1
                        for p in range(3):
                            for i in range(nx):
                                padded[half + i] = row[p, i]
                            _box(padded, width, total)
                            for i in range(ox):
                                mean = np.float32(total[center_x[i]] * share_y[j] * share_x[i])
                                kept[entered % width, p, j, i] = mean
                                sums[p, j, i] += mean
                    entered += 1
                for p in range(3):
                    for j in range(oy):
                        for i in range(ox):
                            means[b, p * channels + c, k, j, i] = sums[p, j, i] * share_z[k]


@compiled
def gradients_loop(
    x: Array,
    y: Array,
    mask: Array,
    center: Array,
    scale: Array,
    axes: Any,
    width: int,
    outer: Array,
    for_x: Array,
    for_y: Array,
    totals: Array,
    first: int,
    last: int,
) -> None:
    """Fill the planes ``first`` to ``last`` of the gradients for ``a`` and ``y``; sum the first, and it times ``a``."""
    batch, channels, _, ny, nx = x.shape
    _, _, _, share_z, from_z, to_z = axes[0]
    _, _, _, share_y, from_y, to_y = axes[1]
    center_x, _, _, share_x, _, _ = axes[2]
    oy, ox, half = len(share_y), len(center_x), width // 2
    sums, spread = np.empty((3, oy, ox)), np.empty((3, oy, nx))
    row, padded = np.empty((3, nx)), np.zeros(nx + 2 * half)
    total, slope = np.empty(nx), np.empty(nx)
    ones = np.ones(nx, np.float32)
    for b in range(batch):
        for c in range(channels):
            by, bm, cm = b % len(y), b % len(mask), c % mask.shape[1]
            sums[:] = 0
            total[:] = 0
            slope[:] = 0
            entered = left = from_z[first]
            for z in range(first, last):
                while entered < to_z[z] or left < from_z[z]:
                    sign, k = (share_z[entered], entered) if entered < to_z[z] else (-share_z[left], left)
                    for p in range(3):
                        for j in range(oy):
                            for i in range(ox):
                                sums[p, j, i] += sign * outer[b, p * channels + c, k, j, i]
                    if entered < to_z[z]:
                        entered += 1
                    else:
                        left += 1
                for p in range(3):
                    for j in range(oy):
                        for i in range(ox):
                            padded[half + center_x[i]] = sums[p, j, i] * share_y[j] * share_x[i]
                        _box(padded, width, spread[p, j])
                row[:] = 0
                above = below = 0
                for h in range(ny):
                    while above < to_y[h] or below < from_y[h]:
                        sign, j = (1.0, above) if above < to_y[h] else (-1.0, below)
                        for p in range(3):
                            for i in range(nx):
                                row[p, i] += sign * spread[p, j, i]
                        if above < to_y[h]:
                            above += 1
                        else:
                            below += 1
                    weights = mask[bm, cm, z, h] if mask.size > 1 else ones
                    xs, ys = x[b, c, z, h], y[by, c, z, h]
                    for i in range(nx):
                        a = (xs[i] - center[b, c]) * scale[b, c]
                        one, two, three = np.float32(row[0, i]), np.float32(row[1, i]), np.float32(row[2, i])
                        pull = weights[i] * (one + np.float32(2) * a * two + ys[i] * three)
                        for_x[b, c, z, h, i] = pull
                        total[i] += pull
                        slope[i] += pull * a
                    if len(for_y) > 0:
                        for i in range(nx):
                            a = (xs[i] - center[b, c]) * scale[b, c]
                            for_y[b, c, z, h, i] = weights[i] * a * np.float32(row[2, i])
            totals[0, b, c], totals[1, b, c] = total.sum(), slope.sum()


@compiled
def standardization_loop(
    x: Array, mask: Array, center: Array, scale: Array, pull: Array, for_x: Array, first: int, last: int
) -> None:
    """Turn gradients for the standardized image into those for the image, in place."""
    batch, channels, _, ny, nx = x.shape
    ones = np.ones(nx, np.float32)
    for b in range(batch):
        for c in range(channels):
            for z in range(first, last):
                for h in range(ny):
                    weights = mask[b % len(mask), c % mask.shape[1], z, h] if mask.size > 1 else ones
                    for i in range(nx):
                        a = (x[b, c, z, h, i] - center[b, c]) * scale[b, c]
                        moved = weights[i] * (pull[0, b, c] + pull[1, b, c] * a)
                        for_x[b, c, z, h, i] = (for_x[b, c, z, h, i] - moved) * scale[b, c]


@compiled
def moments_loop(x: Array, mask: Array, sums: Array, first: int, last: int) -> None:
    """Sum the weights, the weighted differences to the first voxel and their squares, ``(3, B, C)``."""
    batch, channels, _, ny, nx = x.shape
    columns, ones = np.empty((3, nx)), np.ones(nx, np.float32)
    for b in range(batch):
        for c in range(channels):
            columns[:] = 0
            origin = x[b, c, 0, 0, 0]
            for z in range(first, last):
                for h in range(ny):
                    weights = mask[b % len(mask), c % mask.shape[1], z, h] if mask.size > 1 else ones
                    for i in range(nx):
                        difference = np.float64(x[b, c, z, h, i]) - origin
                        columns[0, i] += weights[i]
                        columns[1, i] += weights[i] * difference
                        columns[2, i] += weights[i] * difference * difference
            for p in range(3):
                sums[p, b, c] = columns[p].sum()


@compiled
def correlations_loop(
    means: Array,
    known_mean: Array,
    known_variance: Array,
    share: Array,
    mask: Array,
    counted: Array,
    floor: float,
    squared: bool,
    gradient: Array,
    sums: Array,
    first: int,
    last: int,
) -> None:
    """Sum the correlations of the planes ``first`` to ``last`` of the windows, and fill their gradient."""
    batch, channels, _, ny, nx = means.shape
    channels //= 3
    ones, total = np.ones(nx, np.float32), np.empty(nx)
    for_mean, for_square, for_product = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    zero, half, one, two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
    for b in range(batch):
        weight = np.float32(1 / counted[b])
        total[:] = 0
        for c in range(channels):
            for z in range(first, last):
                for y in range(ny):
                    part = share[b % len(share), c % share.shape[1], z, y] if share.size > 1 else ones
                    weights = mask[b % len(mask), c % mask.shape[1], z, y] if mask.size > 1 else ones
                    firsts, squares = means[b, c, z, y], means[b, channels + c, z, y]
                    products = means[b, 2 * channels + c, z, y]
                    others, spreads = (
                        known_mean[b % len(known_mean), c, z, y],
                        known_variance[b % len(known_mean), c, z, y],
                    )
                    for x in range(nx):
                        mean, other = firsts[x] / part[x], others[x]
                        spread = squares[x] / part[x] - mean * mean
                        variance = (spread if spread > zero else zero) + floor
                        covariance = products[x] / part[x] - mean * other
                        both = one / (variance * (spreads[x] + floor))
                        both = both if squared else np.sqrt(both)
                        value = covariance * covariance * both if squared else covariance * both
                        counts = weights[x] * weight
                        total[x] += counts * value
                        by_covariance = -counts / part[x] * (two * covariance * both if squared else both)
                        by_variance = counts / part[x] * value / variance * (one if squared else half)
                        by_variance = by_variance if spread >= zero else zero
                        for_mean[x] = -by_covariance * other - two * mean * by_variance
                        for_square[x] = by_variance
                        for_product[x] = by_covariance
                    if len(gradient) > 0:
                        gradient[b, c, z, y] = for_mean
                        gradient[b, channels + c, z, y] = for_square
                        gradient[b, 2 * channels + c, z, y] = for_product
        sums[b] += total.sum()
