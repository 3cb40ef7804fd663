"""Group-wise registration: the mean image and mean shape of a group."""

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
        spread: Standard deviation of the warped intensities over the images, averaged over the voxels; a lower value
            means a sharper template.
        drift: Length of the mean displacement that was removed, averaged over the voxels, mm.
        change: Mean absolute difference from the template of the previous round.
    """

    spread: float
    drift: float
    change: float


@dataclass(frozen=True, eq=False)
class GroupTemplate:
    """Result of :func:`build_template`.

    Args:
        image: Mean image, intensities in [0, 1]. If all images have labels, each voxel has its most frequent label.
        transforms: Points of the template's space to points of each image's space, mm; their mean displacement is about
            0.
        rounds: Change of the template in each round.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> GroupTemplate(image, (learnreg.Affine.identity(2),), ()).image is image
        True
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

    The first template is the mean of the images after an alignment of their centroids. Each round registers the
    template (fixed) to every image (moving), removes the mean displacement from the transforms, and averages the warped
    images to the next template.

    Args:
        images: At least two images of the same dimension, on any grids and with any intensity scales.
        method: Method that registers each pair.
        rounds: Number of rounds, at least 1; four are usual.
        grid: Grid of the template; ``None`` is the grid of the first image.
        on_pair: Called with 1 after each registration, for progress bars.

    Returns:
        The template, the transforms to the images, and the change in each round.

    Raises:
        InputError: There are fewer than two images, or no rounds.

    Source:
        Avants et al., The optimal template effect in hippocampus studies of diseased populations, NeuroImage 2010;
        Guimond et al., Average brain models: a convergence study, CVIU 2000. Differs in: no sharpening.

    Example:
        >>> from learnreg.methods import IterativeMethod
        >>> from learnreg.optimization import CenterOfMass
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> result = build_template([fixed, moving], IterativeMethod({"center": CenterOfMass()}), rounds=1)
        >>> [round(float(t(torch.zeros(1, 1, 2))[..., 0])) for t in result.transforms]  # the template is in between
        [-1, 1]
    """
    if len(images) < 2 or rounds < 1:
        raise InputError(
            f"A template needs at least 2 images and 1 round, got {len(images)} image(s) and rounds={rounds}."
        )
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
    """Remove the mean displacement from transforms, and average the warped images.

    Args:
        transforms: From the template's space to that of each image.
        group: Images.
        grid: Grid of the template.
        before: Intensities of the previous template.

    Returns:
        The centered transforms, the new template, and its change.
    """
    mean = torch.zeros_like(channels_first(grid.points))
    for transform in transforms:
        mean += transform.displacement(grid) / len(transforms)
    # T_i o (id + mean)^-1: the mean of these is the identity, up to the error of averaging displacements.
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
