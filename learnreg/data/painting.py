"""Random contrasts and acquisitions of a batch of segment maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from learnreg.data.anatomies import PARTS, REGIONS, SEGMENTS, SHEETS, SHELLS, Draws, along, each, gaussians
from learnreg.typing import ImageTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Contrast:
    """What the segments of a batch look like in one modality.

    Args:
        values: Intensity of each segment.
        texture: How much of the texture each segment shows; it can be negative.
    """

    values: Float[Tensor, "B segments"]
    texture: Float[Tensor, "B segments"]


def random_contrasts(draws: Draws, template: Tensor) -> tuple[Contrast, Contrast]:
    """Draw the contrasts of both images: unrelated, the same, or inverted, and with structures that one does not show.

    Args:
        draws: Of the batch.
        template: ``(B,)``, in which anatomies the parts are tissues; regions of a tissue look almost alike.
    """
    first, second = _contrast(draws, template), _contrast(draws, template)
    same, inverted = draws.chance(0.35)[:, None], draws.chance(0.3)[:, None]
    sign = torch.where(inverted, -1.0, 1.0)
    values = torch.where(same, sign * first.values, second.values)
    texture = torch.where(same, sign * first.texture, second.texture)
    hidden = draws.uniform(SEGMENTS) < draws.uniform(1, low=-0.2, high=0.2)
    return first, Contrast(torch.where(hidden, values.roll(1, 1), values), texture)


def _contrast(draws: Draws, template: Tensor) -> Contrast:
    regions, parts = draws.uniform(REGIONS, 1), draws.uniform(1, PARTS)
    weight = torch.where(template, 0.15 * draws.uniform(), 1.0)[:, None, None]
    below = torch.where(template, 1.0, draws.uniform())[:, None, None]
    inner = (weight * regions + below * parts).flatten(1)
    inner = inner - inner.amin(1, keepdim=True)
    inner = inner / inner.amax(1, keepdim=True).clamp(min=1e-3)
    others = draws.uniform(SHEETS + SHELLS)
    background = torch.where(draws.chance(0.7), 0.0, draws.uniform())[:, None]
    lift = draws.uniform(1, low=0.0, high=0.4)  # of the body above 0
    values = torch.cat([background, lift + (1 - lift) * inner, lift + (1 - lift) * others], dim=1)
    texture = draws.uniform(1, high=0.25) * draws.uniform(SEGMENTS, low=-0.5, high=1.0)
    return Contrast(values, torch.cat([torch.zeros_like(background), texture[:, 1:]], dim=1))


def painted_maps(
    draws: Draws,
    segments: Int[Tensor, "B 1 *grid"],
    texture: Float[Tensor, "B 1 *grid"],
    points: PointTensor,
    contrast: Contrast,
    scale: float,
) -> ImageTensor:
    """Paint segment maps and acquire images of them.

    Args:
        draws: Of the batch.
        segments: See :meth:`Anatomies.at`.
        texture: See :meth:`Anatomies.at`.
        points: Where the voxels lie in the anatomy, mm.
        contrast: Of the batch.
        scale: mm, half the size of an image.

    Returns:
        ``(B, 1, *grid)`` in [0, 1]: with blur, thick slices, a lesion, a bias field, noise, a gamma and a cut field of
        view, each in some of the images.
    """
    ndim = segments.ndim - 2
    shape = tuple(segments.shape[2:])
    index = segments.flatten(1)
    images = contrast.values.gather(1, index) + contrast.texture.gather(1, index) * texture.flatten(1)
    images = _lesion(draws, images.reshape(segments.shape), points, scale) + each(
        draws.uniform(1, high=0.03), ndim
    ) * draws.normal(1, *shape)
    images = _resolution(draws, images)
    images = images * _bias(draws, shape)
    images = images + each(draws.uniform(1, high=0.08).square() / 0.08, ndim) * draws.normal(1, *shape)
    images = rescaled(_cut(draws, images))
    return images.pow(each(torch.exp(0.3 * draws.normal(1)), ndim))


def _lesion(draws: Draws, images: Tensor, points: PointTensor, scale: float) -> Tensor:
    ndim = images.ndim - 2
    center = scale * draws.uniform(ndim, low=-0.6, high=0.6).reshape(-1, *[1] * ndim, ndim)
    radius = scale * each(draws.uniform(1, low=0.06, high=0.25), ndim)
    inside = ((points - center).norm(dim=-1).unsqueeze(1) < radius) & each(draws.chance(0.15)[:, None], ndim)
    return torch.where(inside, each(draws.uniform(1), ndim), images)


def _resolution(draws: Draws, images: Tensor) -> Tensor:
    """Blur, and sample one axis of some images by thick slices."""
    ndim = images.ndim - 2
    sigmas = draws.uniform(1, low=0.2, high=1.0) * draws.uniform(ndim, low=0.8, high=1.2)
    thick = torch.where(draws.chance(0.3), draws.uniform(low=2.0, high=6.0), 1.0)
    axis = draws.uniform(high=ndim).long()
    for k, size in enumerate(images.shape[2:]):
        factor = torch.where(axis == k, thick, torch.ones_like(thick))
        images = along(_slices(size, factor) @ gaussians(size, sigmas[:, k]), images, k)
    return images


def _slices(size: int, factor: Tensor) -> Float[Tensor, "B n n"]:
    """Return matrices that average slices of a thickness in samples, and interpolate between them."""
    index = torch.arange(size, device=factor.device, dtype=factor.dtype)
    factor = factor.reshape(-1, 1, 1)
    center = ((index + 0.5).reshape(1, -1, 1) * factor - 0.5).clamp(max=size - 1)
    average = ((index - center).abs() < factor / 2).to(factor) + 1e-6
    average = average / average.sum(2, keepdim=True)
    between = (1 - (index.reshape(1, -1, 1) - center.mT).abs() / factor).clamp(min=0) + 1e-6
    mixed = (between / between.sum(2, keepdim=True)) @ average
    return torch.where(factor > 1, mixed, torch.eye(size, device=factor.device, dtype=factor.dtype))


def _bias(draws: Draws, shape: tuple[int, ...]) -> Tensor:
    coarse = draws.normal(1, *[4] * len(shape))
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    field = F.interpolate(coarse, size=shape, mode=mode, align_corners=False)
    return torch.exp(each(draws.uniform(1, high=0.4).square() / 0.4, len(shape)) * field)


def _cut(draws: Draws, images: Tensor) -> Tensor:
    """Leave out what lies beyond a plane, in some images, or in a border of noise."""
    ndim = images.ndim - 2
    axis, cut = draws.uniform(high=ndim).long(), draws.chance(0.25)
    share, end = draws.uniform(low=0.0, high=0.4), draws.chance(0.5)
    for k, size in enumerate(images.shape[2:]):
        position = (torch.arange(size, device=images.device) + 0.5) / size
        position = torch.where(end[:, None], 1 - position, position)
        kept = (position >= share[:, None]) | ~(cut & (axis == k))[:, None]
        images = images * kept.reshape(-1, 1, *[size if j == k else 1 for j in range(ndim)])
    return images


def rescaled(images: Tensor) -> Tensor:
    """Rescale each image so that its lowest value and its 0.995 quantile become 0 and 1; clamp."""
    low = images.flatten(1).amin(1)
    thinned = images.flatten(1)[:, ::5]
    high = thinned.kthvalue(max(1, int(0.995 * thinned.shape[1])), dim=1).values
    ndim = images.ndim - 1
    return ((images - each(low, ndim)) / each((high - low).clamp(min=1e-3), ndim)).clamp(0, 1)
