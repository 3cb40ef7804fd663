"""Joint histogram of two images by Parzen windows; see :func:`learnreg.similarity.parzen.joint_histogram`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.kernels.compiled import Array, array, compiled, in_parallel, parts


def joint(
    values: Tensor,
    bounds: Tensor,
    index: Tensor,
    shares: tuple[Tensor, ...],
    weights: Tensor,
    *,
    count: int,
    order: int,
    padding: int,
    bins: int,
) -> Tensor:
    """Sum the weights of the samples per bin of both images.

    Args:
        values: ``(R, N)``, intensities of the second image.
        bounds: ``(2, R)``, lowest and highest intensity.
        index: ``(R or 1, N)``, first bin of each sample in the first image.
        shares: ``K`` times ``(R or 1, N)``, the shares of this bin and the following ones.
        weights: ``(R or 1, N)``.
        count: Number of bins of the second image.
        order: Of its B-spline windows: 0, 1 or 3.
        padding: Number of empty bins at each end.
        bins: Number of bins of the first image.

    Returns:
        ``(R, bins, count)``.
    """
    inputs = array(values), array(bounds), array(index), np.stack([array(s) for s in shares]), array(weights)
    ranges = parts(values.shape[1], values.numel())
    sums = np.zeros((len(ranges), len(values), bins, count))
    in_parallel([partial(joint_loop, *inputs, order, padding, sums[k], *ends) for k, ends in enumerate(ranges)])
    return torch.from_numpy(sums.sum(0).astype(np.float32))


def joint_gradients(
    values: Tensor,
    bounds: Tensor,
    index: Tensor,
    shares: tuple[Tensor, ...],
    weights: Tensor,
    outer: Tensor,
    *,
    order: int,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`joint` for ``values`` and ``bounds``."""
    inputs = array(values), array(bounds), array(index), np.stack([array(s) for s in shares]), array(weights)
    ranges = parts(values.shape[1], values.numel())
    found, sums = np.empty_like(inputs[0]), np.zeros((len(ranges), *bounds.shape))
    given = *inputs, array(outer), order, padding, found
    in_parallel([partial(joint_gradient_loop, *given, sums[k], *ends) for k, ends in enumerate(ranges)])
    return torch.from_numpy(found), torch.from_numpy(sums.sum(0).astype(np.float32))


@compiled
def _scale(least: float, greatest: float, bins: int) -> Any:
    """Return the bins per unit of intensity, and whether the image is constant."""
    tiny, eps = np.float32(1.17549435e-38), np.float32(1.1920929e-07)
    width = greatest - least
    flat = width <= eps * abs(greatest) + tiny
    return np.float32(bins) / (np.float32(1) if flat else width), flat


@compiled
def _window(t: float, order: int, share: Array) -> None:
    """Compute the shares of the bins of a sample at ``t`` in [0, 1] after the bin's center."""
    one, s = np.float32(1), np.float32(1) - t
    if order == 0:
        share[0] = one
    elif order == 1:
        share[0], share[1] = s, t
    else:
        sixth, four, six, three = one / np.float32(6), np.float32(4), np.float32(6), np.float32(3)
        share[0], share[3] = s * s * s * sixth, t * t * t * sixth
        share[1] = (four - six * t * t + three * t * t * t) * sixth
        share[2] = (four - six * s * s + three * s * s * s) * sixth


@compiled
def _slope(t: float, order: int, slope: Array) -> None:
    """Compute the derivatives of :func:`_window`."""
    one, half, s = np.float32(1), np.float32(0.5), np.float32(1) - t
    if order == 0:
        slope[0] = np.float32(0)
    elif order == 1:
        slope[0], slope[1] = -one, one
    else:
        two, three = np.float32(2), np.float32(3) * half
        slope[0], slope[3] = -half * s * s, half * t * t
        slope[1], slope[2] = three * t * t - two * t, two * s - three * s * s


@compiled
def joint_loop(
    values: Array,
    bounds: Array,
    index: Array,
    shares: Array,
    weights: Array,
    order: int,
    padding: int,
    sums: Array,
    first: int,
    last: int,
) -> None:
    """Add the samples ``first`` to ``last``."""
    share = np.empty(4, np.float32)
    bins = sums.shape[2]
    for r in range(len(values)):
        least = bounds[0, r]
        scale, _ = _scale(least, bounds[1, r], bins - 2 * padding)
        i, w = index[r % len(index)], weights[r % len(weights)]
        for n in range(first, last):
            if w[n] == 0:
                continue
            at = (values[r, n] - least) * scale + np.float32(padding)
            at = min(max(at, np.float32(padding)), np.float32(bins - padding))
            low = min(int(at), bins - padding - 1)
            _window(at - np.float32(low), order, share)
            low -= 1 if order == 3 else 0
            for j in range(len(shares)):
                part, row = w[n] * shares[j, r % shares.shape[1], n], sums[r, i[n] + j]
                for k in range(order + 1):
                    row[low + k] += part * share[k]


@compiled
def joint_gradient_loop(
    values: Array,
    bounds: Array,
    index: Array,
    shares: Array,
    weights: Array,
    outer: Array,
    order: int,
    padding: int,
    found: Array,
    sums: Array,
    first: int,
    last: int,
) -> None:
    """Fill the samples ``first`` to ``last`` of the gradient, and add up that for the bounds."""
    slope = np.empty(4, np.float32)
    bins = outer.shape[2]
    for r in range(len(values)):
        least = bounds[0, r]
        scale, flat = _scale(least, bounds[1, r], bins - 2 * padding)
        i, w = index[r % len(index)], weights[r % len(weights)]
        for n in range(first, last):
            found[r, n] = 0
            at = (values[r, n] - least) * scale + np.float32(padding)
            if w[n] == 0 or at < padding or at > bins - padding:
                continue
            low = min(int(at), bins - padding - 1)
            _slope(at - np.float32(low), order, slope)
            low -= 1 if order == 3 else 0
            total = np.float32(0)
            for j in range(len(shares)):
                part, row = w[n] * shares[j, r % shares.shape[1], n], outer[r, i[n] + j]
                for k in range(order + 1):
                    total += part * slope[k] * row[low + k]
            found[r, n] = total * scale
            # how far along the range a sample lies is how much it moves with the upper bound
            share = np.float32(0) if flat else (at - np.float32(padding)) / np.float32(bins - 2 * padding)
            sums[0, r] -= found[r, n] * (np.float32(1) - share)
            sums[1, r] -= found[r, n] * share
