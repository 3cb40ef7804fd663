"""Feature channels, computed once per image and warped with it."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.fields import image_gradient
from learnreg.image import Image
from learnreg.similarity import self_similarity


class IntensityAndGradient(nn.Module):
    """Add the magnitude of the gradient as a second channel.

    A similarity that averages over channels then matches borders too. The gradient is per finest voxel side and
    doubled, so that a step from 0 to 1 between two samples has magnitude 1.
    """

    def forward(self, image: Image) -> Image:
        """Convert ``C`` channels to ``2 C``; intensities in [0, 1]."""
        side = image.grid.spacing[0].min()
        size = image_gradient(image.data, image.grid).square().sum(dim=2).sqrt() * (2 * side)
        return image.with_data(torch.cat([image.data, size], dim=1))


class SelfSimilarity(nn.Module):
    """MIND-SSC descriptors, computed once and warped as in ConvexAdam; compare them by MSE.

    Args:
        radius: See :func:`learnreg.similarity.self_similarity`.
        dilation: See :func:`learnreg.similarity.self_similarity`.
    """

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, image: Image) -> Image:
        """Convert ``C`` channels to ``12 C``, or ``4 C`` in 2-D."""
        return image.with_data(self_similarity(image.data, image.mask, radius=self.radius, dilation=self.dilation))
