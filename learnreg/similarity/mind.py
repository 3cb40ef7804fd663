"""MIND-SSC: self-similarity of the neighborhood of each voxel, for any pair of modalities."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean, standardized
from learnreg.similarity.windows import LocalAverage
from learnreg.typing import BroadcastImage, FeatureTensor, ImageTensor, MaskTensor, Scalar


@full_precision
def self_similarity(
    image: ImageTensor, mask: MaskTensor | None = None, *, radius: int = 1, dilation: int = 2
) -> FeatureTensor:
    """Compute the MIND-SSC descriptor: distances between the patches around a voxel.

    For each pair of the 2 D neighbors at distance ``dilation`` that form a right angle, ``d`` is the mean squared
    difference of the patches around the two. The channel is ``exp(-(d - min d) / v)``, where ``v`` is the mean of ``d -
    min d`` over the pairs.

    Args:
        image: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, voxels that the patches use; ``None`` uses every voxel.
        radius: Of a patch in voxels, at least 1.
        dilation: Distance of the neighbors in voxels.

    Returns:
        ``(B, K C, *grid)`` in [0, 1], with ``K`` 12 in 3-D and 4 in 2-D. It does not change under ``a I + b`` for ``a
        != 0``.

    Raises:
        InputError: ``radius`` or ``dilation`` is below 1.

    Source:
        Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities,
        MICCAI 2013. Differs in: the border voxel is repeated, patches respect a mask.

    Example:
        >>> self_similarity(torch.rand(1, 1, 8, 8, 8)).shape
        torch.Size([1, 12, 8, 8, 8])
    """
    if radius < 1 or dilation < 1:
        raise InputError(f"self_similarity needs a radius and dilation of at least 1, got {radius}, {dilation}.")
    x = standardized(image, mask)
    batch, channels, *shape = x.shape
    ndim = len(shape)
    pairs = list(_right_angles(ndim))
    padded = _padded(x, dilation)
    distance = torch.stack(
        [(_shifted(padded, a, dilation, shape) - _shifted(padded, b, dilation, shape)).square() for a, b in pairs], 2
    ).flatten(1, 2)
    if mask is None:
        distance = LocalAverage(distance, 2 * radius + 1)(distance)
    else:
        seen = _padded(mask.to(x.dtype), dilation)
        valid = [_shifted(seen, a, dilation, shape) * _shifted(seen, b, dilation, shape) for a, b in pairs]
        weights = torch.cat(valid, 1).repeat(1, channels, 1, *([1] * (ndim - 1)))
        distance = LocalAverage(distance, 2 * radius + 1, weights)(distance)
    distance = distance.reshape(batch, channels, len(pairs), *shape)
    distance = distance - distance.amin(2, keepdim=True)
    typical = distance.mean(2, keepdim=True)
    overall = typical.flatten(2).mean(2).reshape(batch, channels, *([1] * (ndim + 1)))
    typical = torch.maximum(torch.minimum(typical, 1e3 * overall), 1e-3 * overall).clamp(min=1e-8)
    return torch.exp(-distance / typical).flatten(1, 2)


def _right_angles(ndim: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the pairs of unit steps along different axes."""
    steps = [tuple(sign * (a == axis) for a in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]
    return [(a, b) for a, b in combinations(steps, 2) if sum(i * j for i, j in zip(a, b, strict=True)) == 0]


def _padded(x: Tensor, width: int) -> Tensor:
    return F.pad(x, [width] * (2 * (x.ndim - 2)), mode="replicate")


def _shifted(padded: Tensor, step: tuple[int, ...], width: int, shape: list[int]) -> Tensor:
    """Return the unpadded image shifted by ``step * width`` voxels."""
    for axis, (direction, n) in enumerate(zip(step, shape, strict=True)):
        padded = padded.narrow(axis + 2, width * (1 + direction), n)
    return padded


@full_precision
def mind_loss(
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    radius: int = 1,
    dilation: int = 2,
    known: Float[Tensor, "#B K *grid"] | None = None,
) -> Scalar:
    """Compute the mean squared difference of the MIND-SSC descriptors.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights of the voxels, and the voxels that the patches use; ``None`` counts every
            voxel.
        radius: See :func:`self_similarity`.
        dilation: See :func:`self_similarity`.
        known: What :func:`self_similarity` returns for ``fixed``; ``None`` computes it.

    Returns:
        A scalar in [0, 1]; 0 for images that are equal up to scale and offset.
    """
    w = self_similarity(warped, mask, radius=radius, dilation=dilation)
    f = self_similarity(fixed, mask, radius=radius, dilation=dilation) if known is None else known
    return masked_mean((w - f).square(), mask)


class MIND(Similarity):
    """MIND-SSC, see :func:`mind_loss`. For two modalities whose contrast varies in space."""

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return mind_loss(warped, fixed, mask, radius=self.radius, dilation=self.dilation)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = self_similarity(fixed, mask, radius=self.radius, dilation=self.dilation)
        return lambda warped: mind_loss(warped, fixed, mask, radius=self.radius, dilation=self.dilation, known=known)
