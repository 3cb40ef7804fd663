"""Synthetic deformations and intensity changes, by seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.separable import apply_separable, gaussian_matrix
from learnreg.transforms import Velocity


def random_velocity(
    grid: Grid, *, magnitude: float, smoothness: float, generator: torch.Generator, steps: int = 6
) -> Velocity:
    """White noise smoothed by a Gaussian, whose flow is a random diffeomorphism.

    Args:
        grid: Where the velocity is sampled.
        magnitude: mm; 95 % of the velocities are shorter.
        smoothness: mm, standard deviation of the Gaussian.
        generator: Of the noise.
        steps: Squarings of the velocity.
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
    """Intensities in [0, 1] with a random gamma, a smooth multiplicative bias field, and noise.

    Args:
        image: One image in [0, 1].
        generator: Of all draws.
        bias: Largest log factor of the bias field.
        gamma: Standard deviation of the log exponent.
        noise: Standard deviation of the additive noise.
        smoothness: mm, of the bias field.
    """
    exponent = math.exp(gamma * float(torch.randn((), generator=generator)))
    drawn = _smoothed(torch.randn(image.data.shape, generator=generator), image.grid, smoothness)
    factor = torch.exp(bias * drawn / drawn.abs().amax().clamp(min=1e-12))
    added = noise * torch.randn(image.data.shape, generator=generator)
    return image.with_data((image.data.clamp(0, 1) ** exponent * factor + added).clamp(0, 1))
