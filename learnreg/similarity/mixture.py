"""A weighted sum of similarities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from learnreg.typing import ImageTensor, MaskTensor, Scalar


class Mixture(nn.Module):
    """``sum_k weight_k similarity_k(warped, fixed, mask)``.

    Args:
        terms: Similarities by name.
        weights: One factor for each name.

    Raises:
        ValueError: The names differ.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if set(terms) != set(weights) or not terms:
            raise ValueError(
                f"Mixture needs one weight for each term, got terms {sorted(terms)}, weights {sorted(weights)}."
            )
        self.terms = nn.ModuleDict(dict(terms))
        self.weights = {name: float(weight) for name, weight in weights.items()}

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        return torch.stack([self.weights[name] * term(warped, fixed, mask) for name, term in self.terms.items()]).sum()
