"""Means of validation values over the pairs of all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.distributed


class CaseScores:
    """Values of validation batches, each under its index in the whole validation.

    Every process gets the same means, whatever values a pair has and however the pairs are distributed: one process
    alone gets them too, to the last bit.

    Example:
        >>> scores = CaseScores()
        >>> scores.add(0, {"val/loss": 1.0, "val/dice": 0.5})
        >>> scores.add(1, {"val/loss": 2.0})  # a pair without labels
        >>> scores.means()
        {'val/dice': 0.5, 'val/loss': 1.5}
    """

    def __init__(self) -> None:
        self._cases: dict[int, dict[str, tuple[float, int]]] = {}

    def add(self, index: int, values: Mapping[str, float], weight: int = 1) -> None:
        """Add values of a batch.

        Args:
            index: Index of the batch among those of all processes.
            values: By name; NaN does not count.
            weight: Number of pairs in the batch.
        """
        known = {name: (value, weight) for name, value in values.items() if not math.isnan(value)}
        self._cases.setdefault(index, {}).update(known)

    def means(self, *, limit: int | None = None) -> dict[str, float]:
        """Compute the weighted mean of each name over the batches of all processes; all processes call it together.

        Args:
            limit: Number of batches; those with a greater index are repeats that only fill up the last round.
        """
        cases = dict(self._cases)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[dict[int, dict[str, tuple[float, int]]]] = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, cases)
            cases = {index: values for part in parts for index, values in part.items()}
        counted = [cases[index] for index in sorted(cases) if limit is None or index < limit]
        means = {}
        for name in sorted({name for values in counted for name in values}):
            found = [values[name] for values in counted if name in values]
            means[name] = math.fsum(value * weight for value, weight in found) / sum(weight for _, weight in found)
        return means
