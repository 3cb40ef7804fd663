"""Mutual information by Parzen windows, plain and normalized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learnreg.numerics import full_precision
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.parzen import Bins, choose, fixed_bins, joint_histogram
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


@full_precision
def mutual_information_loss(  # noqa: PLR0913 - the settings of the similarity
    warped: ImageTensor,
    fixed: BroadcastImage,
    mask: MaskTensor | None = None,
    *,
    bins: int = 32,
    normalized: bool = False,
    samples: int | None = None,
    seed: int = 0,
    orders: tuple[int, int] = (3, 1),
    known: tuple[Bins, Tensor] | None = None,
) -> Scalar:
    """Compute ``-MI(warped, fixed)`` from the joint histogram, or ``2 - NMI``.

    ``MI = H(w) + H(f) - H(w, f)`` and ``NMI = (H(w) + H(f)) / H(w, f)``. The bins span the intensities of each image,
    so scale and offset do not matter.

    Args:
        warped: ``(B, C, *grid)``.
        fixed: ``(B, C, *grid)``.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        bins: Number of bins per image, including two empty ones at each end.
        normalized: ``True`` for ``2 - NMI``.
        samples: Number of voxels, chosen at random; ``None`` uses all.
        seed: Of the choice.
        orders: Orders of the B-spline windows of ``warped`` and ``fixed``. (3, 0) is Mattes' choice. With order 0 an
            image has no gradient, which matters if both are warped.
        known: What :func:`learnreg.similarity.parzen.fixed_bins` returns for the chosen voxels; ``None`` computes it.

    Returns:
        A scalar, lower is better: minus the information in nats, or a value in [0, 1].

    Raises:
        InputError: There are fewer than 8 bins, or an order is unknown.

    Source:
        Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE TMI 2003; Studholme et
        al., An overlap invariant entropy measure, Pattern Recognition 1999.

    Example:
        >>> image = torch.rand(1, 1, 12, 12, 12)
        >>> float(mutual_information_loss(1 - image, image)) < float(mutual_information_loss(image.flip(2), image))
        True
    """
    chosen = choose(warped[0, 0].numel(), samples, seed, warped.device)
    f, weights = fixed_bins(fixed, mask, chosen, bins, orders[1]) if known is None else known
    joint = joint_histogram(f, warped, mask, chosen, weights, bins, orders[0])
    marginals = entropy(joint.sum(1)) + entropy(joint.sum(2))
    both = entropy(joint.flatten(1))
    if not normalized:
        return -(marginals - both).mean()
    return 2 - torch.where(both > 1e-6, marginals / both.clamp(min=1e-6), 1.0).mean()


def entropy(distribution: Tensor) -> Tensor:
    """Compute ``-sum p log p`` per row ``(R, K)``, in nats."""
    return -torch.xlogy(distribution, distribution.clamp(min=torch.finfo(distribution.dtype).tiny)).sum(1)


class MutualInformation(Similarity):
    """Mutual information, see :func:`mutual_information_loss`. For two modalities."""

    def __init__(
        self,
        bins: int = 32,
        *,
        normalized: bool = False,
        samples: int | None = None,
        seed: int = 0,
        orders: tuple[int, int] = (3, 1),
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "bins": bins,
            "normalized": normalized,
            "samples": samples,
            "seed": seed,
            "orders": (orders[0], orders[1]),
        }

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return mutual_information_loss(warped, fixed, mask, **self.settings)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        chosen = choose(fixed[0, 0].numel(), self.settings["samples"], self.settings["seed"], fixed.device)
        known = fixed_bins(fixed, mask, chosen, self.settings["bins"], self.settings["orders"][1])
        return lambda warped: mutual_information_loss(warped, fixed, mask, known=known, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
