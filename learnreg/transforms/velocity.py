"""``Velocity``: a stationary velocity field; its flow is a diffeomorphism."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from learnreg.fields import exponential
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.transforms.base import Transform
from learnreg.transforms.displacement import Displacement, check_field
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Velocity(Transform):
    """Flow of a stationary velocity field, ``x -> exp(v)(x)``, by scaling and squaring; its inverse is ``exp(-v)``.

    Args:
        field: ``(B, D, *grid.shape)``, mm per unit time, components ``(x, y, z)``.
        grid: Where ``field`` is sampled, and where it is integrated.
        steps: Number of squarings.

    Raises:
        InputError: The field does not fit the grid.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> flow = Velocity(torch.full((1, 3, 8, 8, 8), 0.5), grid)
        >>> flow.inverse()(flow(torch.zeros(1, 1, 3)))
        tensor([[[0., 0., 0.]]])
    """

    field: FieldTensor
    grid: Grid
    steps: int = 4

    def __post_init__(self) -> None:
        check_field("Velocity", self.field, self.grid)

    @cached_property
    def integrated(self) -> Displacement:
        """The displacement at time 1, computed once."""
        return Displacement(exponential(self.field, self.grid, steps=self.steps), self.grid)

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        return self.integrated(points)

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return ((self.field, self.grid),)

    def map_grid(self, grid: Grid) -> PointTensor:
        return self.integrated.map_grid(grid)

    def displacement(self, grid: Grid) -> FieldTensor:
        return self.integrated.displacement(grid)

    def separable(self, grid: Grid) -> SeparableMap | None:
        return self.integrated.separable(grid)

    def inverse(self) -> Velocity:
        return Velocity(-self.field, self.grid, self.steps)

    def to(self, *args: object, **kwargs: object) -> Velocity:
        return Velocity(self.field.to(*args, **kwargs), self.grid.to(*args, **kwargs), self.steps)  # type: ignore[call-overload]

    def detach(self) -> Velocity:
        return Velocity(self.field.detach(), self.grid, self.steps)
