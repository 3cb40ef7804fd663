"""Averages in a window around each voxel, over the voxels that a mask counts."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from learnreg.numerics import remembered
from learnreg.separable import apply_separable, box_matrix, gaussian_matrix
from learnreg.similarity.masking import standardized
from learnreg.typing import MaskTensor

Kernel = Literal["box", "gaussian"]


class LocalAverage:
    """Mean in a window, cut off at the border.

    Args:
        like: ``(B, C, *grid)``, of the shape and type to be averaged.
        window: Width of the box in voxels, odd. ``"gaussian"`` has the variance of that box.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        kernel: ``"box"`` or ``"gaussian"``.
        stride: Only at every so many voxels along each axis.

    Raises:
        ValueError: ``window`` is even or below 3, the kernel is unknown, or the stride below 1.
    """

    def __init__(
        self,
        like: Tensor,
        window: int,
        mask: MaskTensor | None = None,
        kernel: Kernel = "box",
        stride: int = 1,
    ) -> None:
        if stride < 1:
            raise ValueError(f"A local similarity needs a stride of at least 1, got {stride}.")
        if window < 3 or window % 2 == 0:
            raise ValueError(f"A local similarity needs an odd window of at least 3 voxels, got {window}.")
        if kernel not in ("box", "gaussian"):
            raise ValueError(f"Unknown window {kernel!r}; choose box or gaussian.")
        sigma = math.sqrt((window**2 - 1) / 12)
        whole = [
            box_matrix(n, window, like) if kernel == "box" else gaussian_matrix(n, sigma, like) for n in like.shape[2:]
        ]
        self.matrices = [matrix[(len(matrix) - 1) % stride // 2 :: stride] for matrix in whole]
        self.mask = None if mask is None else mask.to(like.dtype)
        self.share = None if self.mask is None else apply_separable(self.mask, self.matrices).clamp(min=1e-6)

    def __call__(self, values: Tensor) -> Tensor:
        if self.mask is None or self.share is None:
            return apply_separable(values, self.matrices)
        return apply_separable(values * self.mask, self.matrices) / self.share


def at_windows(values: Tensor | None, stride: int) -> Tensor | None:
    """``(B, C, *grid)`` at the voxels where :class:`LocalAverage` of this stride has its windows."""
    if values is None or stride == 1:
        return values
    for axis in range(2, values.ndim):
        n = values.shape[axis]
        values = values.index_select(axis, torch.arange((n - 1) % stride // 2, n, stride, device=values.device))
    return values


def local_moments(
    image: Tensor, mask: MaskTensor | None, window: int, kernel: Kernel, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The standardized image, and its mean and variance in each window."""
    average = LocalAverage(image, window, mask, kernel, stride)
    x = standardized(image, mask)
    mean = average(x)
    return x, mean, (average(x * x) - mean * mean).clamp(min=0)


local_moments_of_fixed = remembered(local_moments)
