"""Normalized gradient fields: parallel edges of two images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean, standardized
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def ngf_loss(
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    edge: float = 1.0,
    known: tuple[Tensor, Tensor | None] | None = None,
) -> Scalar:
    """Compute ``1 - mean <grad w, grad f>^2 / ((|grad w|^2 + e_w^2) (|grad f|^2 + e_f^2))``.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel. A voxel counts if all its neighbors are in the
            mask.
        edge: ``e`` as a multiple of an image's mean gradient; gradients far below it count as noise.
        known: What :func:`normalized_gradient` returns for ``fixed``; ``None`` computes it.

    Returns:
        A scalar in [0, 1], lower is better. It does not change with scale, offset or sign of either image. Gradients
        are per voxel.

    Raises:
        InputError: ``edge`` is not positive.

    Source:
        Haber and Modersitzki, Intensity gradient based registration and fusion of multi-modal images, MICCAI 2006.

    Example:
        >>> image = torch.rand(1, 1, 8, 8, 8)
        >>> float(ngf_loss(-image, image)) < float(ngf_loss(image.flip(2), image))
        True
    """
    if edge <= 0:
        raise InputError(f"ngf_loss needs a positive edge, got {edge}.")
    n_f, inner = normalized_gradient(fixed, mask, edge) if known is None else known
    n_w = _normalized(warped, mask, inner, edge)
    return 1 - masked_mean((n_w * n_f).sum(2).square(), inner)


@full_precision
def normalized_gradient(image: ImageTensor, mask: MaskTensor | None, edge: float) -> tuple[Tensor, Tensor | None]:
    """Compute ``grad I / sqrt(|grad I|^2 + e^2)``, ``(B, C, D, *grid)``, and the mask of voxels inside ``mask``."""
    inner = None if mask is None else _inner(mask)
    return _normalized(image, mask, inner, edge), inner


def _normalized(image: Tensor, mask: Tensor | None, inner: Tensor | None, edge: float) -> Tensor:
    x = standardized(image, mask)
    gradient = torch.stack([_central(x, axis) for axis in range(2, x.ndim)], dim=2)
    square = gradient.square().sum(2, keepdim=True)
    size = (square + torch.finfo(x.dtype).tiny).sqrt()
    weights = torch.ones_like(size) if inner is None else inner.to(x.dtype).unsqueeze(2).expand_as(size)
    dims = list(range(2, size.ndim))
    typical = (size * weights).sum(dims, keepdim=True) / weights.sum(dims, keepdim=True).clamp(min=1e-6)
    return gradient * (square + (edge * typical).square() + 1e-12).rsqrt()


def _central(x: Tensor, axis: int) -> Tensor:
    """Compute central differences along an axis; the border voxel is repeated."""
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    padded = torch.cat([first, x, last], dim=axis)
    return (padded.narrow(axis, 2, x.shape[axis]) - padded.narrow(axis, 0, x.shape[axis])) / 2


def _inner(mask: Tensor) -> Tensor:
    """Return the mask without the voxels that have a neighbor outside of it."""
    outside = (mask <= 0).float()
    ndim = mask.ndim - 2
    reach = outside
    for axis in range(ndim):
        kernel, padding = [1] * ndim, [0] * ndim
        kernel[axis], padding[axis] = 3, 1
        pool = F.max_pool3d if ndim == 3 else F.max_pool2d
        reach = torch.maximum(reach, pool(outside, kernel, 1, padding))
    return mask.float() * (reach == 0)


class NGF(Similarity):
    """Normalized gradient fields, see :func:`ngf_loss`. For two modalities with the same edges."""

    def __init__(self, edge: float = 1.0) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return ngf_loss(warped, fixed, mask, edge=self.edge)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = normalized_gradient(fixed, mask, self.edge)
        return lambda warped: ngf_loss(warped, fixed, mask, edge=self.edge, known=known)
