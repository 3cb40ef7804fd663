"""``Displacement``: a dense field of vectors."""

from __future__ import annotations

from dataclasses import dataclass

from learnreg.fields import channels_last, invert
from learnreg.grid import Grid
from learnreg.transforms.base import Transform
from learnreg.typing import FieldTensor, PointTensor
from learnreg.warping import resize, sample


@dataclass(frozen=True, eq=False)
class Displacement(Transform):
    """``x -> x + u(x)``, linear between samples, constant beyond the border.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where ``field`` is sampled.

    Raises:
        ValueError: The field does not fit the grid.
    """

    field: FieldTensor
    grid: Grid

    def __post_init__(self) -> None:
        check_field("Displacement", self.field, self.grid)

    def __call__(self, points: PointTensor) -> PointTensor:
        return points + channels_last(sample(self.field, self.grid, points, padding="border"))

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return ((self.field, self.grid),)

    def map_grid(self, grid: Grid) -> PointTensor:
        return grid.points + channels_last(self.displacement(grid))

    def displacement(self, grid: Grid) -> FieldTensor:
        return on_grid(self.field, self.grid, grid)

    def inverse(self) -> Displacement:
        """By fixed point; see :func:`learnreg.fields.invert`, which also returns the residual."""
        return Displacement(invert(self.field, self.grid)[0], self.grid)

    def to(self, *args: object, **kwargs: object) -> Displacement:
        return Displacement(self.field.to(*args, **kwargs), self.grid.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> Displacement:
        return Displacement(self.field.detach(), self.grid)


def check_field(owner: str, field: FieldTensor, grid: Grid) -> None:
    """Raise ``ValueError`` unless ``field`` is a vector field on ``grid``."""
    if field.ndim != grid.ndim + 2 or field.shape[1] != grid.ndim or tuple(field.shape[2:]) != grid.shape:
        raise ValueError(
            f"{owner} needs a field (B, {grid.ndim}, {', '.join(map(str, grid.shape))}) in mm on its grid, "
            f"got {tuple(field.shape)}."
        )


def on_grid(field: FieldTensor, grid: Grid, onto: Grid) -> FieldTensor:
    """A field at the samples of another grid; without interpolation where it is the same grid.

    Between two samplings of one field of view the interpolation is separable, hence cheap.
    """
    if onto is grid or grid.matches(onto):
        return field
    if grid.matches(onto.resized(grid.shape)) and all(m >= n for m, n in zip(onto.shape, grid.shape, strict=True)):
        return resize(field, onto.shape)
    return sample(field, grid, onto.points, padding="border")
