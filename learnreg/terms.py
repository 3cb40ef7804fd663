"""A term of an objective with its weight."""

from __future__ import annotations

import copy
import math
from collections.abc import ItemsView, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from torch import nn

from learnreg.errors import InputError
from learnreg.typing import Scalar

TermT = TypeVar("TermT", bound=nn.Module, covariant=True)
WeightedT = TypeVar("WeightedT", bound="Weighted[nn.Module]")


class Weighted(nn.Module, Generic[TermT]):
    """A term and its weight.

    Args:
        term: A similarity, regularizer, supervision or consistency.
        weight: Factor in the sum, at least 0.

    Raises:
        InputError: The weight is negative or not finite.

    Example:
        >>> from learnreg.similarity import MSE
        >>> Weighted(MSE(), 0.5).weight
        0.5
    """

    term: TermT
    weight: float

    def __init__(self, term: TermT, weight: float = 1.0) -> None:
        super().__init__()
        self.term = term
        self.weight = _checked(weight)

    def with_weight(self: WeightedT, weight: float) -> WeightedT:
        """Return the same term with another weight; the term itself is shared."""
        other = copy.copy(self)
        other.weight = _checked(weight)
        return other

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


def _checked(weight: float) -> float:
    if not (weight >= 0 and math.isfinite(weight)):
        raise InputError(f"The weight of a term must be at least 0 and finite, got {weight}.")
    return float(weight)


@dataclass(frozen=True, eq=False)
class WeightedValue:
    """Value of a term and its weight.

    Args:
        value: Scalar, without the weight.
        weight: Factor in the sum.
    """

    value: Scalar
    weight: float = 1.0

    @property
    def weighted(self) -> Scalar:
        """The value times its weight."""
        return self.weight * self.value


class WeightedTerms(nn.ModuleDict, Generic[WeightedT]):
    """Weighted terms by name.

    Args:
        terms: :class:`Weighted` by name.

    Raises:
        InputError: A value is not a :class:`Weighted`.
    """

    def __init__(self, terms: Mapping[str, WeightedT] | None = None) -> None:
        for name, term in (terms or {}).items():
            if not isinstance(term, Weighted):
                if isinstance(term, dict):  # of a configuration
                    raise InputError(
                        f"The term {name!r} is {term}, keys without a term: none of the chosen groups has it. Leave "
                        "them out, or choose the group that has the term."
                    )
                raise InputError(
                    f"The term {name!r} must be a learnreg.terms.Weighted, got {type(term).__name__}; "
                    "wrap it: Weighted(term, weight)."
                )
        super().__init__(dict(terms or {}))

    def items(self) -> ItemsView[str, WeightedT]:  # type: ignore[override]
        return cast("ItemsView[str, WeightedT]", super().items())

    def __getitem__(self, key: str) -> WeightedT:
        return cast("WeightedT", super().__getitem__(key))
