"""``Transform``: an immutable map from the fixed space to the moving space, in mm LPS."""

from __future__ import annotations

from abc import ABC, abstractmethod

from learnreg.caching import UncachedState
from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.typing import FieldTensor, PointTensor


class Transform(UncachedState, ABC):
    """A map of physical points, batched, 2-D or 3-D.

    It maps points of the fixed space to points of the moving space, so ``warped(x) = moving(transform(x))``, as in ITK.

    Override :attr:`ndim`, ``__call__``, ``inverse``, ``to`` and ``detach``; the other methods follow from these.
    """

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""

    @abstractmethod
    def __call__(self, points: PointTensor) -> PointTensor:
        """Map points.

        Args:
            points: ``(B, *P, D)``, mm LPS; a batch of 1 on either side is broadcast.

        Returns:
            ``(B, *P, D)``, mm LPS.
        """

    @abstractmethod
    def inverse(self) -> Transform:
        """Return the map from the moving space to the fixed space."""

    @abstractmethod
    def to(self, *args: object, **kwargs: object) -> Transform:
        """Move or cast, as ``torch.Tensor.to`` does."""

    @abstractmethod
    def detach(self) -> Transform:
        """Return the same map without the graph that computed it."""

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        """Return the fields that carry the map, with their grids: what a penalty acts on. Affine maps have none."""
        return ()

    def sides(self) -> tuple[Transform | None, Transform]:
        """Return the maps from the space where images are compared to the fixed space (``None``.

        The same) and the moving space.
        """
        return None, self

    def separable(self, grid: Grid) -> SeparableMap | None:
        """Return the map of the samples of ``grid`` in separable form, which is warped without points.

        ``None`` if it has none.
        """
        return None

    def map_grid(self, grid: Grid) -> PointTensor:
        """Map the samples of ``grid``: ``(B, *grid.shape, D)``, mm."""
        return self(grid.points)

    def displacement(self, grid: Grid) -> FieldTensor:
        """Compute ``T(x) - x`` on a grid, ``(B, D, *grid.shape)``, mm."""
        return channels_first(self.map_grid(grid) - grid.points)
