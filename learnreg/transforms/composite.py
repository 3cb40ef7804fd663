"""``Composite``: transforms applied one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class Composite(Transform):
    """Composition of transforms, ``Composite((s, t))(x) == t(s(x))``.

    Args:
        transforms: At least one, the first applied first; nested composites are flattened.

    Raises:
        InputError: There is no transform.

    Example:
        >>> shift = learnreg.Affine.translation([1.0, 0.0, 0.0])
        >>> Composite((shift, shift.inverse()))(torch.zeros(1, 1, 3))
        tensor([[[0., 0., 0.]]])
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        flat: list[Transform] = []
        for transform in self.transforms:
            flat.extend(transform.transforms if isinstance(transform, Composite) else (transform,))
        if not flat:
            raise InputError("Composite needs at least one transform; Affine.identity(ndim) is the neutral one.")
        object.__setattr__(self, "transforms", tuple(flat))

    @property
    def ndim(self) -> int:
        return self.transforms[0].ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        return reduce(lambda mapped, transform: transform(mapped), self.transforms, points)

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return tuple(field for transform in self.transforms for field in transform.fields())

    def map_grid(self, grid: Grid) -> PointTensor:
        points = self.transforms[0].map_grid(grid)
        return reduce(lambda mapped, transform: transform(mapped), self.transforms[1:], points)

    def separable(self, grid: Grid) -> SeparableMap | None:
        """Return the separable form if all transforms but the first are linear and have no gradient."""
        found = self.transforms[0].separable(grid)
        for transform in self.transforms[1:]:
            if found is None or not isinstance(transform, Affine) or transform.matrix.requires_grad:
                return None
            found = found.then(transform.matrix)
        return found

    def inverse(self) -> Composite:
        return Composite(tuple(transform.inverse() for transform in reversed(self.transforms)))

    def to(self, *args: object, **kwargs: object) -> Composite:
        return Composite(tuple(transform.to(*args, **kwargs) for transform in self.transforms))

    def detach(self) -> Composite:
        return Composite(tuple(transform.detach() for transform in self.transforms))


def chain(*transforms: Transform | None) -> Transform:
    """Compose the given transforms, the first applied first.

    ``None`` is left out, and a single transform is returned as it is.
    """
    given = tuple(transform for transform in transforms if transform is not None)
    return given[0] if len(given) == 1 else Composite(given)
