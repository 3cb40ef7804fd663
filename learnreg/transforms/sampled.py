"""``Sampled``: a transform together with its displacement on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learnreg.fields import channels_last
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import Composite, chain
from learnreg.transforms.displacement import check_field
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Sampled(Transform):
    """The same map as ``transform``, with its displacement on one grid at hand; see :func:`sampled_on`.

    On ``grid`` it returns what it holds; at any other points it asks ``transform``. A symmetric transform, whose
    inverse side is an iteration at each voxel, is so evaluated once for all that is written and measured.

    Args:
        transform: The map.
        grid: Where it was evaluated.
        field: ``transform.displacement(grid)``, ``(B, D, *grid.shape)``, mm.

    Raises:
        InputError: The field does not fit the grid.
    """

    transform: Transform
    grid: Grid
    field: FieldTensor

    def __post_init__(self) -> None:
        check_field("Sampled", self.field, self.grid)

    def holds(self, grid: Grid) -> bool:
        """Whether ``grid`` has the samples at which the field is known."""
        return grid is self.grid or self.grid.matches(grid)

    def __call__(self, points: PointTensor) -> PointTensor:
        return self.transform(points)

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return self.transform.fields()

    def sides(self) -> tuple[Transform | None, Transform]:
        return self.transform.sides()

    def separable(self, grid: Grid) -> SeparableMap | None:
        return SeparableMap(self.field, (None,) * grid.ndim) if self.holds(grid) else self.transform.separable(grid)

    def map_grid(self, grid: Grid) -> PointTensor:
        return grid.points + channels_last(self.field) if self.holds(grid) else self.transform.map_grid(grid)

    def displacement(self, grid: Grid) -> FieldTensor:
        return self.field if self.holds(grid) else self.transform.displacement(grid)

    def inverse(self) -> Transform:
        """That of the transform, on no grid."""
        return self.transform.inverse()

    def to(self, *args: object, **kwargs: object) -> Sampled:
        field: torch.Tensor = self.field.to(*args, **kwargs)  # type: ignore[call-overload]
        return Sampled(self.transform.to(*args, **kwargs), self.grid.to(*args, **kwargs), field)

    def detach(self) -> Sampled:
        return Sampled(self.transform.detach(), self.grid, self.field.detach())


def sampled_on(transform: Transform, grid: Grid) -> Transform:
    """Evaluate a transform on a grid once, for all that asks for it there later.

    Linear maps that act last stay apart, because they are written to files as they are and cost nothing.

    Args:
        transform: Any map; one that is sampled on ``grid`` already is returned as it is.
        grid: Usually the fixed grid.

    Returns:
        The same map: ``Composite((Sampled(deformation), linear))``, or fewer parts.
    """
    parts = transform.transforms if isinstance(transform, Composite) else (transform,)
    deforming = max((i + 1 for i, part in enumerate(parts) if not isinstance(part, Affine)), default=0)
    if deforming == 0 or (deforming == 1 and isinstance(parts[0], Sampled) and parts[0].holds(grid)):
        return transform
    first = chain(*parts[:deforming])
    return chain(Sampled(first, grid, first.displacement(grid)), *parts[deforming:])
