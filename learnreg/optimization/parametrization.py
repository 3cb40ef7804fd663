"""Parametrizations: the free parameters of one pair, as modules that return a transform.

They have a network's interface, ``forward(fixed, moving) -> Transform``, so that whatever
minimizes an objective over a network's weights minimizes it over them. Every parameter is in
mm, so a learning rate is the size of a step in mm.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms import Transform


class Parametrization(nn.Module):
    """Free parameters of one pair; ``forward(fixed, moving)`` returns the transform they stand for.

    One whose first argument is the fixed grid of a level, and whose second is a transform to start
    from or ``None``, is what :class:`FieldStage` takes, with its other arguments bound.
    """

    @abstractmethod
    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Transform: ...

    def refined(self, grid: Grid) -> Parametrization:
        """The same transform with the parameters of a finer level; ``grid`` is the level's fixed grid."""
        return self

    def settle(self) -> None:
        """Called once after the last level, for what the result has to be exactly: free of folds."""

    def after_step(self, fixed: Image) -> None:
        """Called after each step of the optimizer, for what is no gradient step: smoothing, composition."""


ParametrizationFactory = Callable[[Grid, Transform | None], Parametrization]
