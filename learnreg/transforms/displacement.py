"""``Displacement``: a dense displacement field."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from learnreg.errors import InputError
from learnreg.fields import channels_last, invert
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap, sample
from learnreg.separable import apply_separable, resize_matrix
from learnreg.transforms.base import Transform
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Displacement(Transform):
    """Dense displacement field ``x -> x + u(x)``, linear between samples, constant outside of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where ``field`` is sampled.

    Raises:
        InputError: The field does not fit the grid.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> Displacement(torch.ones(1, 3, 4, 4, 4), grid)(torch.zeros(1, 1, 3))
        tensor([[[1., 1., 1.]]])
    """

    field: FieldTensor
    grid: Grid

    def __post_init__(self) -> None:
        check_field("Displacement", self.field, self.grid)

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        return points + channels_last(sample(self.field, self.grid, points, padding="border"))

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return ((self.field, self.grid),)

    def map_grid(self, grid: Grid) -> PointTensor:
        return grid.points + channels_last(self.displacement(grid))

    def displacement(self, grid: Grid) -> FieldTensor:
        found = self.separable(grid)
        if found is None:
            return sample(self.field, self.grid, grid.points, padding="border")
        return apply_separable(found.field, found.matrices)

    def separable(self, grid: Grid) -> SeparableMap | None:
        """Return the separable form for another sampling of the same field of view."""
        if grid is self.grid or self.grid.matches(grid):
            return SeparableMap(self.field, (None,) * grid.ndim)
        finer = all(m >= n for m, n in zip(grid.shape, self.grid.shape, strict=True))
        if not finer or not self.grid.matches(grid.resized(self.grid.shape)):
            return None
        sizes = zip(self.grid.shape, grid.shape, strict=True)
        return SeparableMap(self.field, tuple(None if n == m else resize_matrix(n, m, self.field) for n, m in sizes))

    def inverse(self) -> Displacement:
        """Invert by a fixed-point iteration; a warning tells where the field has no inverse, because it folds."""
        inverse, residual = invert(self.field, self.grid)
        warn_of_residual(float(residual.detach().max()), float(self.grid.spacing.min()))
        return Displacement(inverse, self.grid)

    def to(self, *args: object, **kwargs: object) -> Displacement:
        return Displacement(self.field.to(*args, **kwargs), self.grid.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> Displacement:
        return Displacement(self.field.detach(), self.grid)


def warn_of_residual(residual: float, spacing: float) -> None:
    """Warn if an inverse is off by more than a tenth of a voxel.

    Args:
        residual: mm.
        spacing: mm.
    """
    if not residual <= 0.1 * spacing:
        warnings.warn(
            f"The inverse of the transform is off by up to {residual:.2f} mm: the transform folds, or changes too "
            "steeply to be inverted on its grid.",
            stacklevel=3,
        )


def check_field(owner: str, field: FieldTensor, grid: Grid) -> None:
    """Raise ``InputError`` unless ``field`` is a vector field on ``grid``."""
    if field.ndim != grid.ndim + 2 or field.shape[1] != grid.ndim or tuple(field.shape[2:]) != grid.shape:
        raise InputError(
            f"{owner} needs a field (B, {grid.ndim}, {', '.join(map(str, grid.shape))}) in mm on its grid, "
            f"got {tuple(field.shape)}."
        )
