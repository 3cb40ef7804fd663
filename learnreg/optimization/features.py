"""Feature channels, computed once per image and warped with it."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.fields import image_gradient
from learnreg.image import Image
from learnreg.similarity import self_similarity


class IntensityAndGradient(nn.Module):
    """Module that appends the gradient magnitude of each channel to an image.

    A similarity that averages over the channels then also compares edges. The gradient is per finest voxel spacing and
    doubled: a step from 0 to 1 between two samples has magnitude 1.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> IntensityAndGradient()(image).data.shape
        torch.Size([1, 2, 8, 8])
    """

    def forward(self, image: Image) -> Image:
        """Return an image with ``2 C`` channels: the ``C`` channels of ``image``, in [0, 1], and their gradients."""
        side = image.grid.spacing.amin(1).reshape(-1, *[1] * (image.ndim + 1)).to(image.data)  # of each image
        size = torch.linalg.vector_norm(image_gradient(image.data, image.grid), dim=2) * (2 * side)  # gradient 0 at 0
        return image.with_data(torch.cat([image.data, size], dim=1))


class SelfSimilarity(nn.Module):
    """Module that replaces the intensities of an image by its MIND-SSC descriptors; compare them by MSE.

    Descriptors of the moving image are computed once and then warped, as in ConvexAdam. The similarity
    :class:`learnreg.similarity.MIND` computes them from the warped image instead.

    Args:
        radius: See :func:`learnreg.similarity.self_similarity`.
        dilation: See :func:`learnreg.similarity.self_similarity`.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8)))
        >>> SelfSimilarity()(image).data.shape
        torch.Size([1, 12, 8, 8, 8])
    """

    def __init__(self, radius: int = 1, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, image: Image) -> Image:
        """Return an image with ``12 C`` channels, or ``4 C`` in 2-D, for an image with ``C`` channels."""
        return image.with_data(self_similarity(image.data, image.mask, radius=self.radius, dilation=self.dilation))
