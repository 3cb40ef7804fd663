"""Structural similarity in 2-D and 3-D."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from torch import Tensor

from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean, masked_moments, masked_range
from learnreg.similarity.windows import Kernel, LocalAverage
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar

Statistics: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@full_precision
def structural_similarity(
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    window: int = 7,
    kernel: Kernel = "box",
    data_range: float | None = None,
    known: Statistics | None = None,
) -> ImageTensor:
    """Compute the SSIM per window, ``(2 m_w m_f + c1) (2 cov + c2) / ((m_w^2 + m_f^2 + c1) (v_w + v_f + c2))``.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, voxels that the windows use; ``None`` uses every voxel.
        window: Width of the box in voxels, odd; at the border it is cropped.
        kernel: ``"box"``, or ``"gaussian"`` with the variance of that box.
        data_range: ``L`` in ``c1 = (0.01 L)^2`` and ``c2 = (0.03 L)^2``; ``None`` is the range of ``fixed``.
        known: What :func:`ssim_statistics` returns for ``fixed``; ``None`` computes it.

    Returns:
        ``(B, C, *grid)`` in [-1, 1], 1 for equal windows.

    Source:
        Wang et al., Image quality assessment, IEEE TIP 2004.
    """
    if known is None:
        known = ssim_statistics(fixed, mask, window, kernel, data_range)
    center, mean_f, f, var_f, length = known
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2
    average = LocalAverage(f, window, mask, kernel)
    w = warped - center
    mean_w, square_w, product = average.products(w, f)
    var_w, cov = (square_w - mean_w * mean_w).clamp(min=0), product - mean_w * mean_f
    a, b = mean_w + center, mean_f + center
    return (2 * a * b + c1) * (2 * cov + c2) / ((a * a + b * b + c1) * (var_w + var_f + c2))


@full_precision
def ssim_statistics(
    fixed: BroadcastImage, mask: MaskTensor | None, window: int, kernel: Kernel, data_range: float | None
) -> Statistics:
    """Compute the mean, local mean, centered image, local variance and range of an image.

    The image is centered first: squares of a large offset lose the variance in float32.
    """
    center = masked_moments(fixed, mask)[0]
    least, greatest = masked_range(fixed, mask)
    length = (greatest - least).clamp(min=1e-6) if data_range is None else center.new_full((), data_range)
    f = fixed - center
    average = LocalAverage(f, window, mask, kernel)
    mean, square, _ = average.products(f, f)
    return center, mean, f, (square - mean * mean).clamp(min=0), length


def ssim_loss(
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    window: int = 7,
    kernel: Kernel = "box",
    data_range: float | None = None,
    known: Statistics | None = None,
) -> Scalar:
    """Compute ``1 - mean SSIM`` over the mask; see :func:`structural_similarity` for the arguments.

    Returns:
        A scalar in [0, 2], lower is better, 0 for equal images.

    Example:
        >>> image = torch.rand(1, 1, 8, 8, 8)
        >>> round(float(ssim_loss(image, image)), 4)
        0.0
    """
    values = structural_similarity(
        warped, fixed, mask, window=window, kernel=kernel, data_range=data_range, known=known
    )
    return 1 - masked_mean(values, mask)


class SSIM(Similarity):
    """Structural similarity, see :func:`ssim_loss`. For images of one intensity scale."""

    def __init__(self, window: int = 7, *, kernel: Kernel = "box", data_range: float | None = None) -> None:
        super().__init__()
        if data_range is not None and not (data_range > 0 and math.isfinite(data_range)):
            raise InputError(f"SSIM.data_range must be positive or None, got {data_range}.")
        self.settings: dict[str, Any] = {"window": window, "kernel": kernel, "data_range": data_range}

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return ssim_loss(warped, fixed, mask, **self.settings)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = ssim_statistics(fixed, mask, *self.settings.values())
        return lambda warped: ssim_loss(warped, fixed, mask, known=known, **self.settings)
