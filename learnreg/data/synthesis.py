"""Synthetic deformations and intensity changes, by seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.randomness import standard_normal
from learnreg.separable import apply_separable, gaussian_matrix
from learnreg.transforms import Velocity


def numbered(seed: int, number: int) -> torch.Generator:
    """Return the generator of the ``number``-th draw of a seed."""
    return torch.Generator().manual_seed(seed * 100_003 + number)


def random_velocity(
    grid: Grid, *, magnitude: float, smoothness: float, generator: torch.Generator, steps: int = 6
) -> Velocity:
    """Draw a velocity, white noise smoothed by a Gaussian; its flow is a random diffeomorphism.

    Args:
        grid: Where the velocity is sampled.
        magnitude: mm; 95 % of the velocities are shorter.
        smoothness: Standard deviation of the Gaussian, mm.
        generator: Of the noise.
        steps: Squarings of the velocity.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> flow = random_velocity(grid, magnitude=2.0, smoothness=3.0, generator=torch.Generator().manual_seed(0))
        >>> flow.displacement(grid).shape
        torch.Size([1, 3, 8, 8, 8])
    """
    noise = torch.randn(1, grid.ndim, *grid.shape, generator=generator)
    return Velocity(_scaled(_smoothed(noise, grid, smoothness), magnitude), grid, steps)


def _smoothed(noise: Tensor, grid: Grid, smoothness: float) -> Tensor:
    sigmas = [smoothness / spacing for spacing in grid.spacing[0].flip(0).tolist()]
    return apply_separable(noise, [gaussian_matrix(n, sigma) for n, sigma in zip(grid.shape, sigmas, strict=True)])


def _scaled(field: Tensor, magnitude: float) -> Tensor:
    length = field.norm(dim=1).flatten()
    return field * (magnitude / float(length.kthvalue(max(1, math.ceil(0.95 * length.numel()))).values))


def changed_intensities(
    image: Image,
    *,
    generator: torch.Generator,
    bias: float = 0.2,
    gamma: float = 0.2,
    noise: float = 0.02,
    smoothness: float = 40.0,
) -> Image:
    """Change intensities in [0, 1] by a random gamma, a smooth multiplicative bias field, and noise.

    Args:
        image: One image in [0, 1].
        generator: Of all draws.
        bias: Largest log factor of the bias field.
        gamma: Standard deviation of the log exponent.
        noise: Standard deviation of the additive noise.
        smoothness: mm, of the bias field.
    """
    exponent = math.exp(gamma * float(torch.randn((), generator=generator)))
    data = image.data.clamp(0, 1) ** exponent
    if bias > 0:
        drawn = _smoothed(standard_normal(data, generator), image.grid, smoothness)
        data = data * torch.exp(bias * drawn / drawn.abs().amax().clamp(min=1e-12))
    if noise > 0:
        data = data + noise * standard_normal(data, generator)
    return image.with_data(data.clamp(0, 1))


def random_shapes(grid: Grid, count: int, *, smoothness: float, generator: torch.Generator) -> Tensor:
    """Draw labels 1 to ``count``: each voxel gets the index of the largest of ``count`` smooth noises.

    Args:
        grid: Where they lie.
        count: How many labels.
        smoothness: mm, about half the size of a shape.
        generator: Of the noise.

    Source:
        Hoffmann et al., SynthMorph, IEEE TMI 2022, section III-B.
    """
    noise = _smoothed(torch.randn(1, count, *grid.shape, generator=generator), grid, smoothness)
    return noise.argmax(1, keepdim=True) + 1


def painted(labels: Tensor, grid: Grid, *, generator: torch.Generator, spread: float = 0.1, blur: float = 1.0) -> Image:
    """Paint labels with a random contrast: each label gets a random intensity, regardless of its meaning.

    Args:
        labels: ``(1, 1, *grid.shape)``, integers.
        grid: Where they lie.
        generator: Of all draws.
        spread: Largest standard deviation of the intensities within a label.
        blur: Largest standard deviation of the Gaussian that smooths the image, in voxels.

    Returns:
        Intensities in [0, 1] with a random gamma, bias field and noise, and the labels.

    Source:
        Hoffmann et al., SynthMorph, IEEE TMI 2022, section III-C.
    """
    values, where = labels.unique(return_inverse=True)
    mean, deviation = torch.rand(2, len(values), generator=generator)
    data = mean[where] + spread * deviation[where] * torch.randn(labels.shape, generator=generator)
    sigma = max(1e-3, blur * float(torch.rand((), generator=generator)))
    data = apply_separable(data, [gaussian_matrix(n, sigma) for n in grid.shape])
    low, high = data.min(), data.max()
    image = Image((data - low) / (high - low).clamp(min=1e-6), grid, None, labels)
    return changed_intensities(image, generator=generator)
