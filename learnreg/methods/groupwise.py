"""Group-wise registration: a template in the middle of a group of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from learnreg.data.preprocessing import normalized
from learnreg.errors import InputError
from learnreg.fields import channels_first, invert
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.methods.base import Method
from learnreg.optimization import CenterOfMass
from learnreg.transforms import Displacement, Transform, chain
from learnreg.warping import warp


@dataclass(frozen=True)
class Round:
    """Change of the template in one round.

    Args:
        spread: Standard deviation over the images at each voxel of the template, averaged; lower is sharper.
        drift: Mean length of the mean displacement that was removed, mm.
        change: Mean difference from the template of the previous round.
    """

    spread: float
    drift: float
    change: float


@dataclass(frozen=True, eq=False)
class GroupTemplate:
    """Outcome of :func:`build_template`.

    Args:
        image: The mean image, intensities in [0, 1], with the labels that most images have there.
        transforms: From the template's space to that of each image, in mm; their mean is the identity.
        rounds: What each round did.
    """

    image: Image
    transforms: tuple[Transform, ...]
    rounds: tuple[Round, ...]


def build_template(
    images: Sequence[Image],
    method: Method,
    *,
    rounds: int = 4,
    grid: Grid | None = None,
    on_pair: Callable[[int], Any] | None = None,
) -> GroupTemplate:
    """Compute the mean of a group of images in shape and intensity.

    The first template is the mean of the images, aligned by their centroids. In each round the template is registered
    to every image. The mean of the warped images, moved so that the mean displacement to the images is 0, is the next
    template.

    Args:
        images: At least two of one dimension, any grids and intensity scales.
        method: Registers the template (fixed) and an image (moving).
        rounds: At least 1; four are usual.
        grid: Of the template; ``None`` is the grid of the first image.
        on_pair: Called with 1 after each registration.

    Raises:
        InputError: There are fewer than two images, or no rounds.

    Source:
        Avants et al., The optimal template effect in hippocampus studies of diseased populations, NeuroImage 2010;
        Guimond et al., Average brain models: a convergence study, CVIU 2000. Differs in: no sharpening.
    """
    if len(images) < 2 or rounds < 1:
        raise InputError(f"A template needs at least 2 images and 1 round, got {len(images)} and {rounds}.")
    grid = images[0].grid if grid is None else grid
    group = [replace(normalized(image, name=f"image {k + 1}"), landmarks=None) for k, image in enumerate(images)]
    start = replace(group[0], labels=None) if grid is images[0].grid else warp(group[0], _identity(grid), grid)
    transforms = [CenterOfMass()(start, image).transform for image in group]
    transforms, template, done = _centered(transforms, group, grid, start.data)
    history: list[Round] = []
    for _ in range(rounds):
        found = []
        for image in group:
            plain = Image(template.data, grid), Image(image.data, image.grid, image.mask)
            found.append(method(*plain).transform.detach())
            if on_pair is not None:
                on_pair(1)
        transforms, template, done = _centered(found, group, grid, template.data)
        history.append(done)
    return GroupTemplate(replace(template, labels=_voted(transforms, group, grid)), tuple(transforms), tuple(history))


def _identity(grid: Grid) -> Transform:
    return Displacement(grid.affine.new_zeros(1, grid.ndim, *grid.shape), grid)


@torch.no_grad()
def _centered(
    transforms: Sequence[Transform], group: Sequence[Image], grid: Grid, before: torch.Tensor
) -> tuple[list[Transform], Image, Round]:
    """Remove the mean of the transforms, and compute the mean of the warped images."""
    mean = torch.zeros_like(channels_first(grid.points))
    for transform in transforms:
        mean += transform.displacement(grid) / len(transforms)
    back = Displacement(invert(mean, grid)[0], grid)
    moved = [chain(back, transform) for transform in transforms]
    total, squares = torch.zeros_like(before), torch.zeros_like(before)
    for image, transform in zip(group, moved, strict=True):
        warped = warp(Image(image.data, image.grid), transform, grid).data
        total += warped / len(group)
        squares += warped.square() / len(group)
    spread = (squares - total.square()).clamp(min=0).sqrt().mean()
    drift, change = mean.norm(dim=1).mean(), (total - before).abs().mean()
    return moved, Image(total, grid), Round(float(spread), float(drift), float(change))


@torch.no_grad()
def _voted(transforms: Sequence[Transform], group: Sequence[Image], grid: Grid) -> torch.Tensor | None:
    """Return the most frequent label at each voxel of the template, the lowest one in a tie."""
    if any(image.labels is None for image in group):
        return None
    moved = []
    for image, transform in zip(group, transforms, strict=True):
        warped = warp(image, transform, grid).labels
        assert warped is not None  # noqa: S101 - the image has labels
        moved.append(warped)
    return torch.stack(moved).mode(dim=0).values
