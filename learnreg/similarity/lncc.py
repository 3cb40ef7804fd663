"""Local normalized cross-correlation."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from learnreg.kernels.compiled import fused, scored
from learnreg.kernels.windows import correlations
from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_mean
from learnreg.similarity.windows import Kernel, LocalAverage, at_windows, local_moments
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def lncc_loss(  # noqa: PLR0913 - the settings of the similarity
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    window: int = 9,
    kernel: Kernel = "box",
    stride: int = 1,
    squared: bool = True,
    floor: float = 1e-4,
    known: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Scalar:
    """Compute ``1 - mean of the squared correlation`` of both images in a window around each voxel.

    ``cov(w, f)^2 / ((var(w) + e) (var(f) + e))`` with the moments of the window. ``e`` is a share ``floor`` of each
    image's own variance, so the loss does not change under ``a I + b``.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights of the voxels inside the windows, and of the windows; ``None`` counts every
            voxel.
        window: Width of the box in voxels, odd; at the border it is cropped.
        kernel: ``"box"``, or ``"gaussian"`` with the variance of that box.
        stride: Compute every ``stride``-th window along each axis. Neighboring windows share most of their voxels, and
            a stride of 2 takes half the time.
        squared: ``True`` accepts inverted contrast; ``False`` uses the signed correlation.
        floor: Windows whose variance is far below this share of the image's variance count as flat.
        known: What :func:`learnreg.similarity.windows.local_moments` returns for ``fixed``; ``None`` computes it.

    Returns:
        A scalar in [0, 1] (signed: [0, 2]), lower is better; lowest for ``warped = a fixed + b``.

    Raises:
        InputError: ``window`` is even or below 3.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Med. Image Anal. 2008, eq. 5.
        Differs in: relative floor, windows cropped at the border.

    Example:
        >>> image = torch.rand(1, 1, 12, 12, 12)
        >>> float(lncc_loss(2 * image + 1, image)) < 0.01 < 0.9 < float(lncc_loss(image.flip(2), image))
        True
    """
    f, mean_f, var_f = local_moments(fixed, mask, window, kernel, stride) if known is None else known
    average = LocalAverage(warped, window, mask, kernel, stride)
    weights = at_windows(average.mask, stride)
    if fused(warped, mean_f, var_f, average.mask) and not (mean_f.requires_grad or var_f.requires_grad):
        settings: dict[str, Any] = {"share": average.share, "weights": weights, "floor": floor, "squared": squared}
        sums = average.sums(warped, f, standardizing=True)
        return scored(sums, partial(correlations, known=(mean_f, var_f), **settings)).mean()
    mean_w, square_w, product = average.products(warped, f, standardizing=True)
    var_w, cov = (square_w - mean_w * mean_w).clamp(min=0), product - mean_w * mean_f
    scale = (var_w + floor) * (var_f + floor)
    return 1 - masked_mean(cov * cov / scale if squared else cov * scale.rsqrt(), weights)


class LNCC(Similarity):
    """Local normalized cross-correlation, see :func:`lncc_loss`. The default for one modality."""

    def __init__(
        self, window: int = 9, *, kernel: Kernel = "box", stride: int = 1, squared: bool = True, floor: float = 1e-4
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "window": window,
            "kernel": kernel,
            "stride": stride,
            "squared": squared,
            "floor": floor,
        }

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return lncc_loss(warped, fixed, mask, **self.settings)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = local_moments(fixed, mask, *(self.settings[key] for key in ("window", "kernel", "stride")))
        return lambda warped: lncc_loss(warped, fixed, mask, known=known, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
