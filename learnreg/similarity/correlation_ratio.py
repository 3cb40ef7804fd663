"""Correlation ratio: how well one image predicts the other."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import masked_moments, standardized
from learnreg.similarity.parzen import Bins, fixed_bins, tiled
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def correlation_ratio_loss(
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    bins: int = 32,
    order: int = 1,
    known: tuple[Bins, Tensor] | None = None,
) -> Scalar:
    """Compute ``sum_k n_k Var(w | f in bin k) / (n Var(w))``, the variance that ``fixed`` does not explain.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``; the bins span its intensities.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        bins: Number of bins of ``fixed``, including two empty ones at each end.
        order: Order of the B-spline window of ``fixed``: 0, 1 or 3.
        known: What :func:`learnreg.similarity.parzen.fixed_bins` returns; ``None`` computes it.

    Returns:
        A scalar in [0, 1], lower is better: 0 if ``warped`` is a function of ``fixed``, 1 if they are unrelated or
        ``warped`` is constant. Not symmetric in its arguments.

    Source:
        Roche et al., The correlation ratio as a new similarity measure, MICCAI 1998.

    Example:
        >>> fixed = torch.arange(8.0).repeat(64).reshape(1, 1, 8, 8, 8)
        >>> float(correlation_ratio_loss(fixed.square(), fixed, order=0)) < 1e-3
        True
    """
    w = standardized(warped, mask)
    f, weights = fixed_bins(fixed, mask, None, bins, order) if known is None else known
    rows = w.flatten(0, 1).flatten(1)
    number = max(len(rows), len(weights))
    rows, f, weights = tiled(rows, number), f.tiled(number), tiled(weights, number)
    count, total, square = (_by_bin(f, weights * power) for power in (rows.new_ones(()), rows, rows * rows))
    within = (square - total.square() / count.clamp(min=1e-6)).sum(1)
    unexplained = (within / weights.sum(1).clamp(min=1e-6)).clamp(min=0)
    varies = (
        tiled(masked_moments(w.detach(), mask)[1].reshape(-1, 1), number)[:, 0] > 0.5
    )  # it is 1, or 0 for a constant image
    return torch.where(varies, unexplained, 1.0).mean()


def _by_bin(bins: Bins, values: Tensor) -> Tensor:
    """Return ``(R, bins.count)``, the sums of ``values`` ``(R, N)`` over the samples of each bin."""
    total = values.new_zeros(values.shape[0], bins.count)
    for index, share in zip(bins.index, bins.share, strict=True):
        total = total.scatter_add(1, index, share * values)
    return total


class CorrelationRatio(Similarity):
    """Correlation ratio, see :func:`correlation_ratio_loss`. For two modalities, if the fixed image has few tissues."""

    def __init__(self, bins: int = 32, *, order: int = 1) -> None:
        super().__init__()
        self.bins, self.order = bins, order

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return correlation_ratio_loss(warped, fixed, mask, bins=self.bins, order=self.order)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        known = fixed_bins(fixed, mask, None, self.bins, self.order)
        return lambda warped: correlation_ratio_loss(warped, fixed, mask, bins=self.bins, order=self.order, known=known)
