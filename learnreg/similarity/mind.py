"""MIND-SSC: self-similarity of the neighborhood of each voxel, for any pair of modalities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from learnreg.errors import InputError
from learnreg.kernels.compiled import apply, fused, run, scored
from learnreg.kernels.patches import Pairs, descriptor_loss, pair_gradient, pair_means
from learnreg.numerics import full_precision
from learnreg.separable import apply_separable, box_matrix
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean, standardized
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
    distance = _distances(image, mask, radius, dilation)
    distance = distance - distance.amin(2, keepdim=True)
    typical = distance.mean(2, keepdim=True)
    overall = typical.flatten(2).mean(2).reshape(*distance.shape[:2], *([1] * (distance.ndim - 2)))
    typical = torch.maximum(torch.minimum(typical, 1e3 * overall), 1e-3 * overall).clamp(min=1e-8)
    return torch.exp(-distance / typical).flatten(1, 2)


def _distances(image: ImageTensor, mask: MaskTensor | None, radius: int, dilation: int) -> Tensor:
    """Return the distances ``(B, C, K, *grid)`` of the patches of each pair."""
    x = standardized(image, mask)
    pairs: Pairs = [
        (tuple(dilation * (1 + s) for s in a), tuple(dilation * (1 + s) for s in b))
        for a, b in _right_angles(x.ndim - 2)
    ]
    padded = _padded(x, dilation)
    seen = None if mask is None else _padded(mask.to(x.dtype), dilation)
    patches: dict[str, Any] = {"pairs": pairs, "shape": tuple(x.shape[2:]), "radius": radius}
    kernel = fused(padded, seen)
    distance: Tensor = apply(_PairMeans, padded, seen, patches) if kernel else _pair_means(padded, seen, **patches)
    if seen is None:
        return distance
    return distance / _windowed(_weights(seen, pairs, patches["shape"]), radius).clamp(min=1e-6)


def _right_angles(ndim: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the pairs of unit steps along different axes."""
    steps = [tuple(sign * (a == axis) for a in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]
    return [(a, b) for a, b in combinations(steps, 2) if sum(i * j for i, j in zip(a, b, strict=True)) == 0]


def _padded(x: Tensor, width: int) -> Tensor:
    return F.pad(x, [width] * (2 * (x.ndim - 2)), mode="replicate")


class _PairMeans(torch.autograd.Function):
    """:func:`_pair_means` by a kernel; only the image is kept for the gradient."""

    @staticmethod
    def forward(padded: Tensor, seen: Tensor | None, patches: dict[str, Any]) -> Tensor:
        return pair_means(padded, seen, **patches)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.patches = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        pairs, radius = ctx.patches["pairs"], ctx.patches["radius"]
        return run(partial(pair_gradient, pairs=pairs, radius=radius), *ctx.saved_tensors, outer), None, None


def _pair_means(padded: Tensor, seen: Tensor | None, *, pairs: Pairs, shape: tuple[int, ...], radius: int) -> Tensor:
    """The reference of :func:`learnreg.kernels.patches.pair_means`."""
    squares = torch.stack([(_cut(padded, a, shape) - _cut(padded, b, shape)).square() for a, b in pairs], 2)
    return _windowed(squares if seen is None else squares * _weights(seen, pairs, shape), radius)


def _weights(seen: Tensor, pairs: Pairs, shape: tuple[int, ...]) -> Tensor:
    """Return the weights ``(B, 1, K, *shape)`` of the differences: both places must be seen."""
    return torch.stack([_cut(seen, a, shape) * _cut(seen, b, shape) for a, b in pairs], 2)


def _cut(padded: Tensor, first: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Cut an image of a shape out of a padded one."""
    for axis, (begin, n) in enumerate(zip(first, shape, strict=True)):
        padded = padded.narrow(axis + 2, begin, n)
    return padded


def _windowed(values: Tensor, radius: int) -> Tensor:
    """Average ``(B, C, K, *grid)`` values in box windows."""
    return apply_separable(values, [box_matrix(n, 2 * radius + 1, values) for n in values.shape[3:]])


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
    f = self_similarity(fixed, mask, radius=radius, dilation=dilation) if known is None else known
    if fused(warped, f, mask) and not f.requires_grad:
        weights = None if mask is None else mask.to(f.dtype)
        distance = _distances(warped, mask, radius, dilation)
        return scored(distance, partial(descriptor_loss, known=f, weights=weights)).mean()
    w = self_similarity(warped, mask, radius=radius, dilation=dilation)
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
