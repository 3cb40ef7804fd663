"""Random changes of an image that leave the registration task valid."""

from __future__ import annotations

import math

import torch
from torch import nn

from learnreg.image import Image
from learnreg.transforms import Affine
from learnreg.warping import warp


class RandomAffine(nn.Module):
    """A random rotation, scale and shift about the image's center, and a random gamma.

    Args:
        degrees: Standard deviation of each rotation angle.
        scale: Standard deviation of the log scale of each axis.
        shift: Standard deviation of each translation, mm.
        gamma: Standard deviation of the log exponent of intensities in [0, 1].
        probability: How often an image is changed at all.
    """

    def __init__(
        self,
        *,
        degrees: float = 5.0,
        scale: float = 0.05,
        shift: float = 1.5,
        gamma: float = 0.15,
        probability: float = 1.0,
    ) -> None:
        super().__init__()
        self.degrees, self.scale, self.shift = float(degrees), float(scale), float(shift)
        self.gamma, self.probability = float(gamma), float(probability)

    def forward(self, image: Image) -> Image:
        """``image`` is one image in [0, 1]; the draw is from torch's generator."""
        if torch.rand(()) >= self.probability:
            return image
        ndim = image.ndim
        draws = torch.randn(2 * ndim * ndim + ndim + 1)
        skew = draws[: ndim * ndim].reshape(ndim, ndim) * math.radians(self.degrees)
        linear = torch.matrix_exp((skew - skew.T) / math.sqrt(2)) @ torch.diag(torch.exp(self.scale * draws[-ndim:]))
        shift = self.shift * draws[ndim * ndim : ndim * ndim + ndim]
        change = Affine.about(linear[None], shift[None], image.grid.center)
        warped = warp(image, change, image.grid)
        exponent = math.exp(self.gamma * float(draws[2 * ndim * ndim]))
        return warped.with_data(warped.data.clamp(min=0) ** exponent)
