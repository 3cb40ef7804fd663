"""What the similarities share: weighted means, and values free of scale and offset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learnreg.typing import MaskTensor


def masked_mean(values: Tensor, mask: MaskTensor | None) -> Tensor:
    """Mean over the voxels of an image, weighted by ``mask``, then over the batch; an empty mask gives 0."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype).expand_as(values)
    return ((values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)).mean()


def masked_moments(values: Tensor, mask: MaskTensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance an image and channel, ``(B, C, 1, ...)``, over the mask."""
    dims = list(range(2, values.ndim))
    if mask is None:
        mean = values.mean(dims, keepdim=True)
        centered = (values - mean).flatten(2)
        variance = torch.einsum("bcp,bcp->bc", centered, centered) / centered.shape[2]
        return mean, variance.reshape(mean.shape)
    weights = mask.to(values.dtype).expand_as(values)
    total = weights.sum(dims, keepdim=True).clamp(min=1e-6)
    mean = (values * weights).sum(dims, keepdim=True) / total
    return mean, ((values - mean).square() * weights).sum(dims, keepdim=True) / total


def masked_range(values: Tensor, mask: MaskTensor | None) -> tuple[Tensor, Tensor]:
    """Least and greatest value an image and channel, ``(B, C, 1, ...)``, where the mask is not 0."""
    dims = list(range(2, values.ndim))
    if mask is None:
        return values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    counted = (mask > 0).expand_as(values)
    least = torch.where(counted, values, torch.inf).amin(dims, keepdim=True)
    greatest = torch.where(counted, values, -torch.inf).amax(dims, keepdim=True)
    empty = least > greatest
    return torch.where(empty, 0.0, least), torch.where(empty, 0.0, greatest)


def standardized(values: Tensor, mask: MaskTensor | None) -> Tensor:
    """``(x - mean) / std`` an image and channel, in at least float32; a constant image becomes 0.

    It takes scale and offset out before any product is formed: in float32, and more so under
    autocast, ``E[x^2] - E[x]^2`` of an image with a large offset is noise.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    center, scale = standardization(values.detach(), mask)
    result: Tensor = _Standardized.apply(values, mask, center, scale)
    return result


def standardization(values: Tensor, mask: MaskTensor | None) -> tuple[Tensor, Tensor]:
    """Mean and factor, ``(B, C, 1, ...)``, that standardize an image; the factor of a constant one is 0."""
    mean, variance = masked_moments(values, mask)
    flat = variance <= 1e-12 * mean.square() + torch.finfo(values.dtype).tiny
    return mean, torch.where(flat, 0.0, torch.where(flat, 1.0, variance).rsqrt())


class _Standardized(torch.autograd.Function):
    """Only the result is kept for the gradient."""

    @staticmethod
    def forward(values: Tensor, mask: MaskTensor | None, center: Tensor, scale: Tensor) -> Tensor:
        return (values - center).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask, _, scale = inputs
        ctx.save_for_backward(output, scale, mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        result, scale, mask = ctx.saved_tensors
        dims = list(range(2, outer.ndim))
        sums = outer.sum(dims, keepdim=True), (outer * result).sum(dims, keepdim=True)
        return through_standardization(outer, result, scale, mask, *sums, count_of(outer, mask)), None, None, None


def count_of(values: Tensor, mask: MaskTensor | None) -> Tensor | float:
    """The voxels of an image, or their weights in all."""
    if mask is None:
        return float(values[0, 0].numel())
    return mask.sum(list(range(2, mask.ndim)), keepdim=True).clamp(min=1e-6)


def through_standardization(
    outer: Tensor,
    result: Tensor,
    scale: Tensor,
    mask: MaskTensor | None,
    total: Tensor,
    slope: Tensor,
    count: Tensor | float,
) -> Tensor:
    """The gradient for an image from that for the standardized one, in a part of the grid.

    Args:
        outer: The gradient for the standardized image there.
        result: The standardized image there.
        scale: Its factor.
        mask: Its weights there.
        total: Sum of ``outer`` over the whole grid.
        slope: Sum of ``outer * result`` over the whole grid.
        count: See :func:`count_of`, of the whole grid.
    """
    moved = torch.addcmul(total / count, slope / count, result)
    moved = moved if mask is None else moved * mask
    return moved.neg_().add_(outer).mul_(scale)
