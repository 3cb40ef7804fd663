"""Weighted means and moments that the similarities share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learnreg.kernels.compiled import apply, fused, run
from learnreg.kernels.windows import moments
from learnreg.typing import MaskTensor


def both_masks(first: MaskTensor | None, second: MaskTensor | None) -> MaskTensor | None:
    """Return the product of two masks, ``(B, 1, *grid)``: the voxels that both count. ``None`` counts every voxel."""
    if first is None or second is None:
        return first if second is None else second
    return first.to(second.dtype) * second


def masked_mean(values: Tensor, mask: MaskTensor | None) -> Tensor:
    """Average over the voxels of each image, weighted by a mask, then over the batch.

    Args:
        values: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.

    Returns:
        A scalar; 0 for an empty mask.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 30.0]).reshape(1, 1, 3)
        >>> masked_mean(values, torch.tensor([1, 1, 0]).reshape(1, 1, 3))
        tensor(1.5000)
    """
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype).expand_as(values)
    return ((values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)).mean()


def masked_moments(values: Tensor, mask: MaskTensor | None) -> tuple[Tensor, Tensor]:
    """Compute mean and variance per image and channel, ``(B, C, 1, ...)``, over the mask."""
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
    """Compute the lowest and highest value per image and channel, ``(B, C, 1, ...)``, where the mask is not 0."""
    dims = list(range(2, values.ndim))
    if mask is None:
        return values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    counted = (mask > 0).expand_as(values)
    least = torch.where(counted, values, torch.inf).amin(dims, keepdim=True)
    greatest = torch.where(counted, values, -torch.inf).amax(dims, keepdim=True)
    empty = least > greatest
    return torch.where(empty, 0.0, least), torch.where(empty, 0.0, greatest)


def standardized(values: Tensor, mask: MaskTensor | None) -> Tensor:
    """Compute ``(x - mean) / std`` per image and channel, in at least float32; a constant image becomes 0.

    Scale and offset are removed before any product is formed. In float32, ``E[x^2] - E[x]^2`` of an image with a large
    offset is only rounding error.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    center, scale = standardization(values.detach(), mask)
    result: Tensor = apply(_Standardized, values, mask, center, scale)
    return result


def standardization(values: Tensor, mask: MaskTensor | None) -> tuple[Tensor, Tensor]:
    """Compute the mean and the factor, ``(B, C, 1, ...)``, that standardize an image.

    The factor of a constant image is 0.
    """
    mask = None if mask is None else mask.to(values.dtype)
    mean, variance = run(moments, values, mask) if fused(values, mask) else masked_moments(values, mask)
    flat = variance <= 1e-12 * mean.square() + torch.finfo(values.dtype).tiny
    return mean, torch.where(flat, 0.0, torch.where(flat, 1.0, variance).rsqrt())


class _Standardized(torch.autograd.Function):
    """Standardize values; only the result is kept for the gradient."""

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
        count = float(outer[0, 0].numel()) if mask is None else mask.sum(dims, keepdim=True).clamp(min=1e-6)
        total, slope = outer.sum(dims, keepdim=True), (outer * result).sum(dims, keepdim=True)
        moved = torch.addcmul(total / count, slope / count, result)
        moved = moved if mask is None else moved * mask
        return moved.neg_().add_(outer).mul_(scale), None, None, None
