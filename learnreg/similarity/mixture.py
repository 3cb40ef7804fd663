"""A weighted sum of similarities."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from learnreg.errors import InputError
from learnreg.similarity.base import Comparison, Similarity
from learnreg.terms import Weighted, WeightedTerms
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


class Mixture(Similarity):
    """``sum_k weight_k similarity_k(warped, fixed, mask)``.

    Args:
        terms: Similarities with their weights, by name.

    Raises:
        InputError: There is no term, or one has no weight.

    Example:
        >>> from learnreg.similarity import LNCC, MSE
        >>> similarity = Mixture({"lncc": Weighted(LNCC(), 1.5), "mse": Weighted(MSE(), 5.0)})
        >>> image = torch.rand(1, 1, 12, 12, 12)
        >>> float(similarity(image, image)) < 0.01
        True
    """

    def __init__(self, terms: Mapping[str, Weighted[Similarity]]) -> None:
        super().__init__()
        if not terms:
            raise InputError("Mixture needs at least one term.")
        self.terms: WeightedTerms[Weighted[Similarity]] = WeightedTerms(terms)

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return torch.stack([one.weight * one.term(warped, fixed, mask) for _, one in self.terms.items()]).sum()

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        parts = [(one.weight, one.term.prepare(fixed, mask)) for _, one in self.terms.items()]
        return lambda warped: torch.stack([weight * compare(warped) for weight, compare in parts]).sum()
