"""Free-form deformations: coefficients on a lattice of control points."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from learnreg.fields import channels_first, channels_last
from learnreg.grid import Grid
from learnreg.transforms.base import Transform
from learnreg.transforms.inverse import Inverse
from learnreg.typing import CoefficientTensor, FieldTensor, PointTensor

Weight = Callable[[tuple[int, ...]], Tensor]


def gathered(coefficients: CoefficientTensor, base: Tensor, taps: int, weight: Weight) -> Tensor:
    """Compute ``sum_k weight(k) c[base + k]`` over the ``taps^D`` lattice points around each point.

    Args:
        coefficients: ``(B, D, *lattice)``.
        base: ``(B, P, D)``, integer index ``(x, y, z)`` of the first lattice point; points outside of the lattice count
            as 0.
        taps: Lattice points per axis.
        weight: ``(i, j, k) -> (B, P)``, weight of the lattice point at ``base + (i, j, k)``.

    Returns:
        ``(B, P, D)``.
    """
    batch = max(coefficients.shape[0], base.shape[0])
    shape = coefficients.shape[2:]
    ndim = len(shape)
    flat = coefficients.flatten(2).expand(batch, -1, -1)
    size = torch.tensor(shape[::-1], device=base.device)
    strides = torch.tensor([math.prod(shape[ndim - axis :]) for axis in range(ndim)], device=base.device)
    base = base.expand(batch, -1, -1)
    total = flat.new_zeros(batch, coefficients.shape[1], base.shape[1])
    for step in product(range(taps), repeat=ndim):
        index = base + torch.tensor(step, device=base.device)
        inside = ((index >= 0) & (index < size)).all(-1)
        offset = (index.clamp(min=torch.zeros_like(size), max=size - 1) * strides).sum(-1)
        values = flat.gather(2, offset.unsqueeze(1).expand(-1, flat.shape[1], -1))
        total = total + values * (weight(step) * inside).unsqueeze(1)
    return total.transpose(1, 2)


def positions(lattice: Grid, grid: Grid) -> tuple[Tensor, ...] | None:
    """Return the lattice coordinates of the samples of ``grid``, ``(n,)`` per array axis.

    ``None`` unless the axes agree.
    """
    ndim, shape = grid.ndim, grid.shape
    relation = torch.linalg.inv(lattice.affine.double()) @ grid.affine.double()
    linear = relation[:, :ndim, :ndim]
    turned = linear - torch.diag_embed(linear.diagonal(dim1=1, dim2=2))
    differs = torch.maximum(turned.abs().amax(), (relation - relation[:1]).abs().amax())
    if bool(differs * max(shape) > 1e-3):
        return None
    first, step = relation[0, :ndim, ndim].flip(0), linear[0].diagonal().flip(0)
    samples = [torch.arange(n, dtype=torch.float64, device=grid.device) for n in shape]
    return tuple(a + s * i for a, s, i in zip(first, step, samples, strict=True))


@dataclass(frozen=True, eq=False)
class Basis:
    """The functions of a lattice at the samples of one grid, see :meth:`FreeForm.basis_on`.

    Args:
        grid: Where the functions are evaluated.
    """

    grid: Grid


BasisT = TypeVar("BasisT", bound=Basis)
FreeFormT = TypeVar("FreeFormT", bound="FreeForm[Any]")


class FreeForm(Transform, Generic[BasisT]):
    """``x -> x + sum_k c_k f(x - x_k)`` with control points ``x_k`` on a lattice.

    Args:
        coefficients: ``(B, D, *lattice.shape)``, mm, components ``(x, y, z)``.
        lattice: Where the control points lie.
        basis: What :meth:`basis_on` returned for the grid on which the transform will be evaluated; ``None``
            computes it at each evaluation. A solver that evaluates many transforms of one lattice gives it.
    """

    coefficients: CoefficientTensor
    lattice: Grid
    basis: BasisT | None

    @abstractmethod
    def offsets(self, points: PointTensor) -> Tensor:
        """Compute ``T(x) - x`` at points ``(B, P, D)``, mm."""

    @abstractmethod
    def basis_on(self, grid: Grid) -> BasisT | None:
        """Evaluate the functions of the lattice on a grid; ``None`` unless the axes of both agree."""

    @abstractmethod
    def expand(self, basis: BasisT) -> FieldTensor:
        """Compute ``T(x) - x`` on the grid of a basis, ``(B, D, *grid.shape)``, mm."""

    def with_basis(self: FreeFormT, grid: Grid) -> FreeFormT:
        """Return the same transform with its basis for ``grid``."""
        return replace(self, basis=self.basis_on(grid))  # type: ignore[type-var]

    def find_basis(self, grid: Grid) -> BasisT | None:
        """Return ``basis`` if it is that of ``grid``, else compute it."""
        if self.basis is not None and self.basis.grid is grid:
            return self.basis
        return self.basis_on(grid)

    @property
    def ndim(self) -> int:
        return self.lattice.ndim

    def __call__(self, points: PointTensor) -> PointTensor:
        flat = points.reshape(points.shape[0], -1, points.shape[-1])
        moved = flat + self.offsets(flat)
        return moved.reshape(moved.shape[0], *points.shape[1:])

    def fields(self) -> tuple[tuple[FieldTensor, Grid], ...]:
        return ((self.coefficients, self.lattice),)

    def map_grid(self, grid: Grid) -> PointTensor:
        return grid.points + channels_last(self.displacement(grid))

    def displacement(self, grid: Grid) -> FieldTensor:
        basis = self.find_basis(grid)
        return channels_first(self(grid.points) - grid.points) if basis is None else self.expand(basis)

    def inverse(self) -> Inverse:
        """Invert point by point; see :class:`Inverse`, which also returns the residual."""
        return Inverse(self)

    def to(self: FreeFormT, *args: object, **kwargs: object) -> FreeFormT:
        moved = self.coefficients.to(*args, **kwargs)  # type: ignore[call-overload]
        return replace(self, coefficients=moved, lattice=self.lattice.to(*args, **kwargs), basis=None)  # type: ignore[type-var]

    def detach(self: FreeFormT) -> FreeFormT:
        return replace(self, coefficients=self.coefficients.detach())  # type: ignore[type-var]
