"""Feature channels: computed once for each image, then warped with it."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.fields import image_gradient
from learnreg.image import Image
from learnreg.similarity import self_similarity


class IntensityAndGradient(nn.Module):
    """The image with the magnitude of its gradient as a second channel.

    A similarity that averages over channels then also matches borders, whatever lies on their two
    sides. The gradient is per finest voxel side, doubled, so that a step from 0 to 1 between two
    samples has magnitude 1, the size of the step.
    """

    def forward(self, image: Image) -> Image:
        """Channels ``C`` to ``2 C``; intensities in [0, 1]."""
        side = image.grid.spacing[0].min()
        size = image_gradient(image.data, image.grid).square().sum(dim=2).sqrt() * (2 * side)
        return image.with_data(torch.cat([image.data, size], dim=1))


class SelfSimilarity(nn.Module):
    """MIND-SSC descriptors, computed once and warped, as ConvexAdam does; to be matched by MSE.

    Args:
        radius: See :func:`learnreg.similarity.self_similarity`.
        dilation: See there.
    """

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, image: Image) -> Image:
        """Channels ``C`` to ``12 C``, or ``4 C`` in 2-D."""
        return image.with_data(self_similarity(image.data, image.mask, radius=self.radius, dilation=self.dilation))
