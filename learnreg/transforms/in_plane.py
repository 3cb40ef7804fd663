"""``InPlane``: a 2-D transform between two planes in space, for images of a single slice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms.affine import Affine, homogeneous
from learnreg.transforms.base import Transform
from learnreg.typing import PointTensor


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of a single slice, with its own 2-D coordinates ``u = B^T x``.

    Args:
        basis: ``B``, ``(3, 2)``, orthonormal columns.
        height: Position along the normal, mm.
    """

    basis: Tensor
    height: float

    @staticmethod
    def of(grid: Grid, *, like: Plane | None = None) -> Plane:
        """Return the plane of a grid with one sample along an axis.

        Args:
            grid: 3-D.
            like: Take its basis if the planes are parallel, so that positions in both compare.
        """
        columns = _in_plane_columns(grid)
        basis = grid.direction[0][:, columns]
        if like is not None and float((like.basis.mT @ basis).det().abs()) > 0.999:
            basis = like.basis
        plane = Plane(basis, 0.0)
        return replace(plane, height=float(plane.normal @ grid.origin[0]))

    @property
    def normal(self) -> Tensor:
        """``(3,)``, a unit vector."""
        return torch.linalg.cross(self.basis[:, 0], self.basis[:, 1])

    def flat_grid(self, grid: Grid) -> Grid:
        """Return the 2-D grid of a single slice in the coordinates of this plane."""
        columns = _in_plane_columns(grid)
        linear = self.basis.mT @ grid.affine[0, :3, columns]
        shape = tuple(grid.shape[2 - column] for column in reversed(columns))
        return Grid(shape, homogeneous(linear[None], (self.basis.mT @ grid.origin[0])[None]))

    def flat(self, image: Image) -> Image:
        """Return a single slice as a 2-D image."""
        axis = image.grid.shape.index(1) + 2
        parts = [None if part is None else part.squeeze(axis) for part in (image.data, image.mask, image.labels)]
        data, mask, labels = parts
        assert data is not None  # noqa: S101 - an image has data
        landmarks = None if image.landmarks is None else image.landmarks @ self.basis
        return Image(data, self.flat_grid(image.grid), mask, labels, landmarks, image.covariates)

    def to(self, *args: object, **kwargs: object) -> Plane:
        """Move or cast, as ``torch.Tensor.to`` does."""
        return Plane(self.basis.to(*args, **kwargs), self.height)  # type: ignore[call-overload]


def _in_plane_columns(grid: Grid) -> list[int]:
    return [column for column in range(3) if 2 - column != grid.shape.index(1)]


def is_slice(grid: Grid) -> bool:
    """Return whether a 3-D grid has one sample along an axis.

    Raises:
        InputError: It has one sample along two axes.
    """
    if grid.ndim != 3 or 1 not in grid.shape:
        return False
    if grid.shape.count(1) > 1:
        raise InputError(f"An image of {grid.shape} samples is a line; give one with at least two axes.")
    return True


@dataclass(frozen=True, eq=False)
class InPlane(Transform):
    """A 2-D transform from one plane to another; the distance from the plane stays.

    Args:
        transform: 2-D, in the coordinates of the planes.
        fixed: Plane of the fixed image.
        moving: Plane of the moving image.

    Example:
        >>> grid = learnreg.Grid.regular((1, 8, 8))
        >>> plane = Plane.of(grid)
        >>> InPlane(learnreg.Affine.translation([1.0, 2.0]), plane, plane)(torch.zeros(1, 1, 3))
        tensor([[[1., 2., 0.]]])
    """

    transform: Transform
    fixed: Plane
    moving: Plane

    @property
    def ndim(self) -> int:
        return 3

    def __call__(self, points: PointTensor) -> PointTensor:
        fixed, moving = self.fixed.to(points), self.moving.to(points)
        above = points @ fixed.normal - fixed.height + moving.height
        found: PointTensor = self.transform(points @ fixed.basis) @ moving.basis.mT + above[..., None] * moving.normal
        return found

    def inverse(self) -> InPlane:
        return InPlane(self.transform.inverse(), self.moving, self.fixed)

    def to(self, *args: object, **kwargs: object) -> InPlane:
        planes = (plane.to(*args, **kwargs) for plane in (self.fixed, self.moving))
        return InPlane(self.transform.to(*args, **kwargs), *planes)

    def detach(self) -> InPlane:
        return InPlane(self.transform.detach(), self.fixed, self.moving)


def lifted(transform: Transform, fixed: Plane, moving: Plane) -> Transform:
    """Return a 2-D transform between two planes as a 3-D one; an affine map stays an affine map."""
    whole = InPlane(transform, fixed, moving)
    if not isinstance(transform, Affine):
        return whole
    base = transform.matrix.new_zeros(1, 1, 3)
    origin = whole(base)
    columns = whole(torch.eye(3, dtype=base.dtype, device=base.device)[None]) - origin
    return Affine(homogeneous(columns.mT, origin[:, 0]))


def flattened(transform: Affine, fixed: Plane, moving: Plane) -> Affine:
    """Return what an affine map does in the planes, in their coordinates; the inverse of :func:`lifted`."""
    fixed, moving = fixed.to(transform.matrix), moving.to(transform.matrix)

    def mapped(u: Tensor) -> Tensor:
        return transform(u @ fixed.basis.mT + fixed.height * fixed.normal) @ moving.basis

    origin = mapped(transform.matrix.new_zeros(1, 1, 2))
    columns = mapped(torch.eye(2).to(transform.matrix)[None]) - origin
    return Affine(homogeneous(columns.mT, origin[:, 0]))
