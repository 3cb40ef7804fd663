"""Parametrizations: the free parameters of the transform of one pair.

A parametrization has the interface of a network, ``forward(fixed, moving) -> Transform``. Every parameter is in mm, so
the learning rate is a step size in mm.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms import Transform


class Parametrization(nn.Module):
    """Module that holds the free parameters of the transform of one pair.

    Derive a class and override :meth:`forward`. For :class:`FieldStage`, its constructor takes the fixed grid of a
    level and a transform to start from, or ``None``; bind other arguments with ``functools.partial``.

    Example:
        >>> class Shift(Parametrization):
        ...     def __init__(self, grid, start=None):
        ...         super().__init__()
        ...         self.vector = torch.nn.Parameter(torch.zeros(1, grid.ndim))
        ...     def forward(self, fixed=None, moving=None):
        ...         return learnreg.Affine.translation(self.vector)
        >>> Shift(learnreg.Grid.regular((16, 16)))()(torch.ones(1, 1, 2)).detach()
        tensor([[[1., 1.]]])
    """

    @abstractmethod
    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Transform:
        """Return the transform of the current parameters.

        Args:
            fixed: The reference. The parametrizations of learnreg ignore both images; they are arguments because a
                network has them.
            moving: The image to align.

        Returns:
            Points of the fixed space to points of the moving space, mm.
        """

    def refined(self, grid: Grid) -> Parametrization:
        """Return a parametrization of the same transform for a finer level; by default this one.

        Args:
            grid: Fixed grid of the finer level.
        """
        return self

    def settle(self) -> None:
        """Correct the parameters in place after the last level; by default do nothing.

        :class:`DenseParametrization` with a velocity, and both sides of a :class:`SymmetricParametrization` of these,
        remove the folds of the sampled flow. No other parametrization promises a map without folds.
        """

    def after_step(self, fixed: Image) -> None:
        """Change the parameters in place after each step of the optimizer; by default do nothing.

        Override it for updates that are not gradient steps, such as smoothing or composition.

        Args:
            fixed: The reference of the level.
        """


ParametrizationFactory = Callable[[Grid, Transform | None], Parametrization]
