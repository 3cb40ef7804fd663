"""The interface of a regularizer."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from learnreg.grid import Grid
from learnreg.typing import FieldTensor, Scalar, WeightTensor


class Regularizer(nn.Module):
    """How irregular a field is; lower is smoother. Override :meth:`forward`."""

    @abstractmethod
    def forward(self, field: FieldTensor, grid: Grid, weight: WeightTensor | None = None) -> Scalar:
        """Compute the energy of a field, in physical units: it hardly changes when the field is resampled.

        Args:
            field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
            grid: Where ``field`` is sampled.
            weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

        Returns:
            A scalar, differentiable in ``field``.
        """
