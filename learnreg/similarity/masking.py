"""What the similarities share: weighted means, and values free of scale and offset."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.numerics import remembered
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
        return mean, (values - mean).square().mean(dims, keepdim=True)
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
    mean, variance = masked_moments(values, mask)
    smallest = torch.finfo(values.dtype).tiny
    flat = variance <= 1e-12 * mean.square() + smallest
    return torch.where(flat, 0.0, values - mean) * torch.where(flat, 1.0, variance).rsqrt()


standardized_fixed = remembered(standardized)
