"""Parametrizations: the free parameters of one pair, as modules that return a transform.

They have the interface of a network, ``forward(fixed, moving) -> Transform``. Every parameter is in mm, so a learning
rate is the size of a step in mm.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms import Transform


class Parametrization(nn.Module):
    """Free parameters of one pair.

    :class:`FieldStage` accepts a class whose first argument is the fixed grid of a level and whose second argument is a
    transform to start from, or ``None``; bind its other arguments with ``functools.partial``.
    """

    @abstractmethod
    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Transform:
        """Return the transform of the current parameters.

        Args:
            fixed: The reference; the parametrizations of this package ignore the images.
            moving: The image to align.
        """

    def refined(self, grid: Grid) -> Parametrization:
        """Return the parameters of a finer level with the same transform.

        Args:
            grid: Fixed grid of the finer level.
        """
        return self

    def settle(self) -> None:
        """Make the result valid after the last level, for example free of folds; by default nothing."""

    def after_step(self, fixed: Image) -> None:
        """Update the parameters after each step of the optimizer, for updates that are not gradient steps.

        Args:
            fixed: The reference of the level.
        """


ParametrizationFactory = Callable[[Grid, Transform | None], Parametrization]
