"""Local normalized cross-correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.separable import apply_separable, box_matrix
from learnreg.similarity.masking import masked_mean, standardized
from learnreg.typing import ImageTensor, MaskTensor, Scalar


def lncc_loss(
    warped: ImageTensor,
    fixed: ImageTensor,
    mask: MaskTensor | None = None,
    *,
    window: int = 9,
    squared: bool = True,
    floor: float = 1e-4,
) -> Scalar:
    """``1 - mean of the squared correlation`` of the two images in a box around each voxel.

    ``cov(w, f)^2 / ((var(w) + e) (var(f) + e))`` with the moments of the window, and ``e`` a
    share ``floor`` of each image's own variance: the loss does not change under ``a I + b``.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights of the voxels, inside the windows and of the windows;
            ``None`` counts every voxel.
        window: Width of the box in voxels, odd; at the border it is cut off.
        squared: ``True`` accepts inverted contrast; ``False`` uses the signed correlation.
        floor: Windows whose variance is far below this share of the image's count as flat.

    Returns:
        A scalar in [0, 1] (signed: [0, 2]); lower is better, least for ``warped = a fixed + b``.

    Raises:
        ValueError: ``window`` is even or below 3.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Med. Image
        Anal. 2008, eq. 5. Differs in: relative floor, windows cut off at the border.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"lncc_loss needs an odd window of at least 3 voxels, got {window}.")
    with torch.autocast(warped.device.type, enabled=False):
        w, f = standardized(warped, mask), standardized(fixed, mask)
        average = LocalAverage(w, window, mask)
        mean_w, mean_f = average(w), average(f)
        cov = average(w * f) - mean_w * mean_f
        var_w = (average(w * w) - mean_w * mean_w).clamp(min=0) + floor
        var_f = (average(f * f) - mean_f * mean_f).clamp(min=0) + floor
        correlation = cov * cov / (var_w * var_f) if squared else cov * (var_w * var_f).rsqrt()
        return 1 - masked_mean(correlation, mask)


class LocalAverage:
    """Mean in a box, over the voxels that the mask counts."""

    def __init__(self, like: Tensor, window: int, mask: MaskTensor | None) -> None:
        self.matrices = [box_matrix(n, window, like) for n in like.shape[2:]]
        self.mask = None if mask is None else mask.to(like.dtype)
        self.share = None if self.mask is None else apply_separable(self.mask, self.matrices).clamp(min=1e-6)

    def __call__(self, values: Tensor) -> Tensor:
        if self.mask is None or self.share is None:
            return apply_separable(values, self.matrices)
        return apply_separable(values * self.mask, self.matrices) / self.share


class LNCC(nn.Module):
    """Local normalized cross-correlation, see :func:`lncc_loss`. The default for one modality."""

    def __init__(self, window: int = 9, *, squared: bool = True, floor: float = 1e-4) -> None:
        super().__init__()
        self.window, self.squared, self.floor = window, squared, floor

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return lncc_loss(warped, fixed, mask, window=self.window, squared=self.squared, floor=self.floor)

    def extra_repr(self) -> str:
        return f"window={self.window}, squared={self.squared}, floor={self.floor}"
