"""Parzen windows: differentiable histograms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.kernels import histogram
from learnreg.kernels.compiled import apply, fused, run
from learnreg.numerics import full_precision
from learnreg.separable import spline_weights
from learnreg.similarity.masking import masked_range
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor

PADDING = 2  # empty bins at each end, so that a cubic window fits


@dataclass(frozen=True, eq=False)
class Bins:
    """Assignment of samples to bins.

    Args:
        index: ``K`` tensors ``(R, N)``, the bins of each sample; one row per image and channel.
        share: ``K`` tensors ``(R, N)``, the share of a sample that each of its bins gets; shares sum to 1.
        count: Number of bins.
    """

    index: tuple[Tensor, ...]
    share: tuple[Tensor, ...]
    count: int

    def tiled(self, rows: int) -> Bins:
        """Return the bins of one image for each image of a batch, ``rows`` in all."""
        if len(self.index[0]) == rows:
            return self
        return Bins(tuple(tiled(i, rows) for i in self.index), tuple(tiled(s, rows) for s in self.share), self.count)


def tiled(values: Tensor, rows: int) -> Tensor:
    """Repeat the rows ``(R, N)`` of one image for each image of a batch."""
    return values if len(values) == rows else values.repeat(rows // len(values), 1)


def check_bins(count: int, order: int) -> None:
    """Raise ``InputError`` if there are fewer than 8 bins, or no window of this order."""
    if count < 8:
        raise InputError(f"A Parzen histogram needs at least 8 bins, got {count}.")
    if order not in (0, 1, 3):
        raise InputError(f"A Parzen window is a B-spline of order 0, 1 or 3, got {order}.")


def rows_at(values: ImageTensor, chosen: Tensor | None) -> Tensor:
    """Return the values at the chosen voxels, a row ``(R, N)`` per image and channel."""
    rows = values.flatten(0, 1).flatten(1)
    return rows if chosen is None else rows[:, chosen]


def binned(values: ImageTensor, mask: MaskTensor | None, chosen: Tensor | None, count: int, order: int) -> Bins:
    """Assign intensities to bins that span the values inside the mask.

    Args:
        values: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``; only values where it is not 0 set the range.
        chosen: Flat indices of the voxels to use; ``None`` uses all.
        count: Number of bins, including two empty ones at each end.
        order: Of the B-spline window: 0 puts a sample into one bin, 1 into two, 3 into four.

    Raises:
        InputError: There are fewer than 8 bins, or the order is unknown.
    """
    check_bins(count, order)
    least, greatest = (bound.flatten(0, 1).flatten(1) for bound in masked_range(values, mask))
    rows = rows_at(values, chosen)
    width = greatest - least
    flat = width <= torch.finfo(values.dtype).eps * greatest.abs() + torch.finfo(values.dtype).tiny
    position = (rows - least) / torch.where(flat, 1.0, width) * (count - 2 * PADDING) + PADDING
    position = position.clamp(PADDING, count - PADDING)
    whole = position.detach().floor().clamp(max=count - PADDING - 1)
    index, t = whole.long(), position - whole
    first = -1 if order == 3 else 0
    return Bins(tuple(index + first + k for k in range(order + 1)), spline_weights(t, order), count)


def joint_histogram(
    first: Bins,
    values: ImageTensor,
    mask: MaskTensor | None,
    chosen: Tensor | None,
    weights: Tensor,
    count: int,
    order: int,
) -> Tensor:
    """Compute the joint distribution ``(R, first.count, count)`` of two images; each row sums to 1.

    Args:
        first: Bins of one image.
        values: ``(B, C, *grid)``, the other image.
        mask: See :func:`binned`.
        chosen: See :func:`binned`.
        weights: ``(R, N)``, weight of each sample. The rows of one image are used for each image of a batch.
        count: See :func:`binned`.
        order: See :func:`binned`.

    Raises:
        InputError: See :func:`binned`.
    """
    check_bins(count, order)
    constant = not any(share.requires_grad for share in (*first.share, weights))
    if constant and fused(values, weights, *first.share) and len(weights) <= values.shape[0] * values.shape[1]:
        bounds = torch.stack([bound.flatten() for bound in masked_range(values, mask)])
        settings = {"order": order, "padding": PADDING}
        total: Tensor = apply(_Joint, rows_at(values, chosen), bounds, first, weights, count, settings)
        return total / total.sum((1, 2), keepdim=True).clamp(min=1e-12)
    return _joint_histogram(first, binned(values, mask, chosen, count, order), weights)


class _Joint(torch.autograd.Function):
    """The sums of :func:`learnreg.kernels.histogram.joint`; nothing but the arguments is kept for the gradient."""

    @staticmethod
    def forward(
        rows: Tensor, bounds: Tensor, first: Bins, weights: Tensor, count: int, settings: dict[str, int]
    ) -> Tensor:
        return histogram.joint(
            rows, bounds, first.index[0], first.share, weights, count=count, bins=first.count, **settings
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, bounds, ctx.first, weights, _, ctx.settings = inputs
        ctx.save_for_backward(rows, bounds, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        def gradients(rows: Tensor, bounds: Tensor, weights: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
            first = ctx.first
            return histogram.joint_gradients(rows, bounds, first.index[0], first.share, weights, outer, **ctx.settings)

        return *run(gradients, *ctx.saved_tensors, outer), None, None, None, None


def _joint_histogram(first: Bins, second: Bins, weights: Tensor) -> Tensor:
    """The reference of the kernel, from the bins of both images."""
    rows, size = max(weights.shape[0], len(second.index[0])), first.count * second.count
    first, second, weights = first.tiled(rows), second.tiled(rows), tiled(weights, rows)
    offset = torch.arange(rows, device=weights.device).unsqueeze(1) * size
    total = weights.new_zeros(rows * size)
    for i, p in zip(first.index, first.share, strict=True):
        row, counted = offset + i * second.count, p * weights
        for j, q in zip(second.index, second.share, strict=True):
            total = total.index_add(0, (row + j).flatten(), (counted * q).flatten())
    joint = total.reshape(rows, first.count, second.count)
    return joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-12)


def sample_weights(mask: MaskTensor | None, like: ImageTensor, chosen: Tensor | None) -> Tensor:
    """Return the mask at the chosen voxels, ``(B C, N)``; ones without a mask."""
    weights = torch.ones_like(like) if mask is None else mask.to(like.dtype).expand_as(like)
    return rows_at(weights, chosen)


@full_precision
def fixed_bins(
    fixed: BroadcastImage, mask: MaskTensor | None, chosen: Tensor | None, count: int, order: int
) -> tuple[Bins, Tensor]:
    """Return the bins of an image and the weights of its samples; see :func:`binned` and :func:`sample_weights`."""
    return binned(fixed, mask, chosen, count, order), sample_weights(mask, fixed, chosen)


@lru_cache(maxsize=8)
def choose(total: int, samples: int | None, seed: int, device: torch.device) -> Tensor | None:
    """Choose ``samples`` of ``total`` voxels, the same ones for the same seed; ``None`` if all are used."""
    if samples is None or samples >= total:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:samples].sort().values.to(device)
