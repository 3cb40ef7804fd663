"""Averages in a window around each voxel, over the voxels that a mask counts."""

from __future__ import annotations

import math
from typing import Literal

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

    Raises:
        ValueError: ``window`` is even or below 3, or the kernel is unknown.
    """

    def __init__(self, like: Tensor, window: int, mask: MaskTensor | None = None, kernel: Kernel = "box") -> None:
        if window < 3 or window % 2 == 0:
            raise ValueError(f"A local similarity needs an odd window of at least 3 voxels, got {window}.")
        if kernel not in ("box", "gaussian"):
            raise ValueError(f"Unknown window {kernel!r}; choose box or gaussian.")
        sigma = math.sqrt((window**2 - 1) / 12)
        self.matrices = [
            box_matrix(n, window, like) if kernel == "box" else gaussian_matrix(n, sigma, like) for n in like.shape[2:]
        ]
        self.mask = None if mask is None else mask.to(like.dtype)
        self.share = None if self.mask is None else apply_separable(self.mask, self.matrices).clamp(min=1e-6)

    def __call__(self, values: Tensor) -> Tensor:
        if self.mask is None or self.share is None:
            return apply_separable(values, self.matrices)
        return apply_separable(values * self.mask, self.matrices) / self.share


def local_moments(image: Tensor, mask: MaskTensor | None, window: int, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """The standardized image, and its mean and variance in each window."""
    average = LocalAverage(image, window, mask, kernel)
    x = standardized(image, mask)
    mean = average(x)
    return x, mean, (average(x * x) - mean * mean).clamp(min=0)


local_moments_of_fixed = remembered(local_moments)
