"""``Transform``: an immutable map from the fixed space to the moving space, in mm LPS."""

from __future__ import annotations

from abc import ABC, abstractmethod

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.typing import FieldTensor, PointTensor


class Transform(ABC):
    """A map of physical points, batched; 2-D and 3-D.

    It maps fixed to moving (pull-back), so ``warped(x) = moving(transform(x))``, as in ITK.
    """

    @abstractmethod
    def __call__(self, points: PointTensor) -> PointTensor:
        """Map ``(B, *P, D)`` points in mm; a batch of 1 on either side is broadcast."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The map from the moving space to the fixed space."""

    @abstractmethod
    def to(self, *args: object, **kwargs: object) -> Transform:
        """Move or cast, as ``torch.Tensor.to``."""

    @abstractmethod
    def detach(self) -> Transform:
        """The same map, cut off from the graph that made it."""

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        """The fields that carry the map, with their grids: what a regularizer penalizes. Affine: none."""
        return ()

    def sides(self) -> tuple[Transform | None, Transform]:
        """What maps the space where both images are compared to the fixed (``None``: itself) and the moving image."""
        return None, self

    def separable(self, grid: Grid) -> SeparableMap | None:
        """The map of the samples of ``grid`` in the form that is warped without points, ``None`` if it has none."""
        return None

    def map_grid(self, grid: Grid) -> PointTensor:
        """Where the samples of ``grid`` go, ``(B, *grid.shape, D)``, mm."""
        return self(grid.points)

    def displacement(self, grid: Grid) -> FieldTensor:
        """``T(x) - x`` on a grid, ``(B, D, *grid.shape)``, mm."""
        return channels_first(self.map_grid(grid) - grid.points)
