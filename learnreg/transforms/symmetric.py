"""``Symmetric``: two maps from a space between the images, one to each image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from learnreg.grid import Grid
from learnreg.transforms.base import Transform
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Symmetric(Transform):
    """Pair of maps from a middle space, ``x -> moving_side(fixed_side^-1(x))``; exchanging the sides inverts it.

    An objective compares ``fixed o fixed_side`` with ``moving o moving_side``, so neither image is the reference.

    Args:
        fixed_side: From the middle space to the fixed space.
        moving_side: From the middle space to the moving space.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Med. Image Anal. 2008.
    """

    fixed_side: Transform
    moving_side: Transform

    @cached_property
    def _to_middle(self) -> Transform:
        return self.fixed_side.inverse()

    @property
    def ndim(self) -> int:
        return self.moving_side.ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        return self.moving_side(self._to_middle(points))

    def map_grid(self, grid: Grid) -> PointTensor:
        return self.moving_side(self._to_middle.map_grid(grid))

    def sides(self) -> tuple[Transform | None, Transform]:
        return self.fixed_side, self.moving_side

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return self.fixed_side.fields() + self.moving_side.fields()

    def inverse(self) -> Symmetric:
        return Symmetric(self.moving_side, self.fixed_side)

    def to(self, *args: object, **kwargs: object) -> Symmetric:
        return Symmetric(self.fixed_side.to(*args, **kwargs), self.moving_side.to(*args, **kwargs))

    def detach(self) -> Symmetric:
        return Symmetric(self.fixed_side.detach(), self.moving_side.detach())
