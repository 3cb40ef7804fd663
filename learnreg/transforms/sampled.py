"""``Sampled``: a transform together with its displacement on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from learnreg.fields import channels_first, channels_last
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.separable import slabs
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import Composite, chain
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Sampled(Transform):
    """A transform that computes its displacement on one grid only once.

    Scores, warped image, figure and file of a registration need it on the fixed grid; a symmetric transform, for one,
    is expensive to evaluate. On other grids and at other points it is the transform itself.

    Args:
        transform: The map.
        grid: Where its displacement is kept.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> sampled = Sampled(learnreg.Affine.translation([1.0, 0.0, 0.0]), grid)
        >>> sampled.displacement(grid).shape
        torch.Size([1, 3, 4, 4, 4])
    """

    transform: Transform
    grid: Grid

    def parts(self) -> tuple[Transform, ...]:
        """The transforms that are composed, the first applied first."""
        return self.transform.transforms if isinstance(self.transform, Composite) else (self.transform,)

    @cached_property
    def deforming(self) -> int:
        """Number of parts before the affine parts at the end."""
        parts = self.parts()
        return max((k + 1 for k, part in enumerate(parts) if not isinstance(part, Affine)), default=0)

    @cached_property
    def deformation(self) -> FieldTensor:
        """``(B, D, *grid.shape)``, mm, displacement of the first :attr:`deforming` parts on the grid."""
        return chain(*self.parts()[: self.deforming]).displacement(self.grid)

    @cached_property
    def field(self) -> FieldTensor:
        """``(B, D, *grid.shape)``, mm, displacement of the whole transform on the grid."""
        if self.deforming == 0:
            return self.transform.displacement(self.grid)
        linear = self.parts()[self.deforming :]
        if not linear:
            return self.deformation
        moved = []
        for rows in slabs(self.grid.shape, self.deformation.shape[0], self.deformation.device):
            slab = self.grid.rows(rows)
            points = slab.points + channels_last(self.deformation[:, :, rows])
            for part in linear:
                points = part(points)
            moved.append(channels_first(points - slab.points))
        return torch.cat(moved, dim=2)

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        return self.transform(points)

    def inverse(self) -> Transform:
        return self.transform.inverse()

    def to(self, *args: object, **kwargs: object) -> Sampled:
        return Sampled(self.transform.to(*args, **kwargs), self.grid.to(*args, **kwargs))

    def detach(self) -> Sampled:
        return Sampled(self.transform.detach(), self.grid)

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return self.transform.fields()

    def sides(self) -> tuple[Transform | None, Transform]:
        return self.transform.sides()

    def separable(self, grid: Grid) -> SeparableMap | None:
        found = self.transform.separable(grid)
        if found is None and self.grid.matches(grid):
            return SeparableMap(self.field, (None,) * grid.ndim)
        return found

    def map_grid(self, grid: Grid) -> PointTensor:
        return grid.points + channels_last(self.field) if self.grid.matches(grid) else self.transform.map_grid(grid)

    def displacement(self, grid: Grid) -> FieldTensor:
        return self.field if self.grid.matches(grid) else self.transform.displacement(grid)
