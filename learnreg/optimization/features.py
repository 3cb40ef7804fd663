"""Feature channels, computed once per image and warped with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.fields import image_gradient
from learnreg.grid import Grid, linear_map
from learnreg.image import Image
from learnreg.similarity import self_similarity
from learnreg.typing import ImageTensor, MaskTensor


class IntensityAndGradient(nn.Module):
    """Module that appends the gradient magnitude of each channel to an image.

    A similarity that averages over the channels then also compares edges. The gradient is per finest voxel spacing and
    doubled: a step from 0 to 1 between two samples has magnitude 1. With a mask, it uses the voxels of the mask only.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> IntensityAndGradient()(image).data.shape
        torch.Size([1, 2, 8, 8])
    """

    def forward(self, image: Image) -> Image:
        """Return an image with ``2 C`` channels: the ``C`` channels of ``image``, in [0, 1], and their gradients."""
        side = image.grid.spacing.amin(1).reshape(-1, *[1] * (image.ndim + 1)).to(image.data)  # of each image
        size = torch.linalg.vector_norm(masked_gradient(image.data, image.grid, image.mask), dim=2) * (
            2 * side
        )  # gradient 0 at 0
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


def masked_gradient(data: ImageTensor, grid: Grid, mask: MaskTensor | None) -> Tensor:
    """Compute the gradient of an image from the voxels of a mask.

    Differences are central, one-sided at the border of the mask, and 0 where neither neighbor is in the mask.

    Args:
        data: ``(B, C, *grid.shape)``.
        grid: Where it is sampled.
        mask: ``(B, 1, *grid.shape)``; ``None`` counts every voxel.

    Returns:
        ``(B, C, D, *grid.shape)``, along ``(x, y, z)``, per mm; see :func:`learnreg.fields.image_gradient`.
    """
    if mask is None:
        return image_gradient(data, grid)
    counted, axes = mask != 0, []
    for axis in range(grid.ndim + 1, 1, -1):  # x, y, z
        n = data.shape[axis]
        both = counted.narrow(axis, 1, n - 1) & counted.narrow(axis, 0, n - 1)
        step = torch.where(both, data.diff(dim=axis), 0)
        total, number = torch.zeros_like(data), torch.zeros_like(mask, dtype=data.dtype)
        for start in (0, 1):
            total.narrow(axis, start, n - 1).add_(step)
            number.narrow(axis, start, n - 1).add_(both)
        axes.append(total / number.clamp(min=1))
    by_index = torch.stack(axes, dim=2).flatten(0, 1)  # (B C, D, *grid)
    turned = grid.inverse_affine.mT.expand(len(data), -1, -1).repeat_interleave(data.shape[1], 0)
    return linear_map(turned, by_index).reshape(*data.shape[:2], grid.ndim, *grid.shape)
