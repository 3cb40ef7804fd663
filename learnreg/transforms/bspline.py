"""``BSpline``: free-form deformation by B-splines on a lattice of control points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.sampling import SeparableMap
from learnreg.separable import apply_separable, spline_weights
from learnreg.transforms.displacement import check_field
from learnreg.transforms.lattice import Basis, FreeForm, gathered, positions
from learnreg.typing import FieldTensor, PointTensor


@dataclass(frozen=True, eq=False)
class BSplineBasis(Basis):
    """B-splines of a lattice at the samples of a grid whose axes agree with it.

    Args:
        grid: Where they are evaluated.
        matrices: ``(n, m)`` per array axis, from ``m`` control points to ``n`` samples.
    """

    matrices: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class BSpline(FreeForm[BSplineBasis]):
    """Free-form deformation ``x -> x + sum_k c_k prod_a b(x_a - k_a)``, constant outside of the lattice's domain.

    If the axes of a grid agree with those of the lattice, as they usually do, it is evaluated by one small matrix per
    axis; otherwise by gathering ``(order + 1)^D`` control points per point.

    Args:
        coefficients: ``(B, D, *lattice.shape)``, mm, components ``(x, y, z)``.
        lattice: Control points, see :func:`spline_lattice`.
        order: 1 (linear), 2 (quadratic) or 3 (cubic).
        basis: See :class:`learnreg.transforms.FreeForm`.

    Raises:
        InputError: The coefficients do not fit the lattice, the order is unknown, or the lattice has too few control
            points along an axis.

    Source:
        Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 1999. Equal to ITK's
        ``BSplineTransform``, the form in which it is saved.

    Example:
        >>> lattice = spline_lattice(learnreg.Grid.regular((12, 12, 12)), 4.0)
        >>> spline = BSpline(torch.ones(1, 3, *lattice.shape), lattice)
        >>> spline(torch.zeros(1, 1, 3))
        tensor([[[1.0000, 1.0000, 1.0000]]])
    """

    coefficients: FieldTensor
    lattice: Grid
    order: int = 3
    basis: BSplineBasis | None = None

    def __post_init__(self) -> None:
        check_field("BSpline", self.coefficients, self.lattice)
        check_order(self.order)
        if min(self.lattice.shape) <= self.order:
            raise InputError(
                f"A B-spline of order {self.order} needs at least {self.order + 1} control points per axis, "
                f"got {self.lattice.shape}."
            )

    def offsets(self, points: PointTensor) -> Tensor:
        position = self.lattice.to_index(points)
        base, shares = spline_shares(position, self.lattice.size.to(position), self.order)
        steps = shares.unbind(-1)  # (B, P, D) per control point

        def weight(step: tuple[int, ...]) -> Tensor:
            return torch.stack([steps[k][..., axis] for axis, k in enumerate(step)]).prod(0)

        return gathered(self.coefficients, base, self.order + 1, weight)

    def basis_on(self, grid: Grid) -> BSplineBasis | None:
        where = positions(self.lattice, grid)
        if where is None:
            return None
        sizes = zip(where, self.lattice.shape, strict=True)
        return BSplineBasis(grid, tuple(spline_matrix(t, n, self.order).to(self.lattice.dtype) for t, n in sizes))

    def expand(self, basis: BSplineBasis) -> FieldTensor:
        return apply_separable(self.coefficients, basis.matrices)

    def separable(self, grid: Grid) -> SeparableMap | None:
        basis = self.find_basis(grid)
        return None if basis is None else SeparableMap(self.coefficients, basis.matrices)


def check_order(order: int) -> None:
    """Raise ``InputError`` unless ``order`` is 1, 2 or 3."""
    if order not in (1, 2, 3):
        raise InputError(f"A B-spline has order 1, 2 or 3, got {order}.")


def spline_lattice(grid: Grid, spacing: float | Sequence[float], order: int = 3) -> Grid:
    """Return control points that cover the whole field of view of ``grid``, placed as in ITK.

    Args:
        grid: The field of view.
        spacing: mm along ``(x, y, z)``, or one value; reduced until it divides the field of view.
        order: Of the spline.
    """
    check_order(order)
    ndim = grid.ndim
    wanted = torch.as_tensor(spacing, dtype=torch.float64).expand(ndim)
    extent = grid.extent[0].double().cpu()
    cells = (extent / wanted - 1e-6).ceil().clamp(min=1)
    step = (extent / cells).to(grid.device)
    first = torch.full((ndim,), -0.5, dtype=torch.float64, device=grid.device)
    first = first - step / grid.spacing[0].double() * (order - 1) / 2  # in index units of the grid
    affine = grid.affine.double().clone()
    linear = affine[:, :ndim, :ndim].clone()
    affine[:, :ndim, ndim] += (linear @ first.unsqueeze(-1)).squeeze(-1)
    affine[:, :ndim, :ndim] = linear * (step / grid.spacing[0].double())
    return Grid(tuple(int(c) + order for c in cells.flip(0)), affine.to(grid.dtype))


def spline_shares(position: Tensor, size: Tensor | int, order: int) -> tuple[Tensor, Tensor]:
    """Compute the first control point and the weights of a B-spline at positions along an axis.

    Args:
        position: ``(...)`` in lattice units; clamped to where the support is complete.
        size: Number of control points, broadcastable.
        order: 1, 2 or 3.

    Returns:
        Integers ``(...)``, and weights ``(..., order + 1)`` that sum to 1.
    """
    size = torch.as_tensor(size, dtype=position.dtype, device=position.device)
    margin = (order - 1) / 2
    position = torch.minimum(position.clamp(min=margin), size - 1 - margin)
    base = (position.detach() - margin).floor()
    base = torch.minimum(base, size - 1 - order)
    t = position - base - margin  # in [0, 1]
    return base.long(), torch.stack(spline_weights(t, order), dim=-1)


def spline_matrix(position: Tensor, size: int, order: int) -> Tensor:
    """Return the values of the B-splines at ``n`` positions along an axis in lattice units, ``(n, size)``."""
    base, shares = spline_shares(position, size, order)
    index = base.unsqueeze(-1) + torch.arange(order + 1, device=position.device)
    return torch.zeros(len(position), size, dtype=position.dtype, device=position.device).scatter_add(1, index, shares)


def fit_bspline(displacement: FieldTensor, grid: Grid, lattice: Grid, order: int = 3) -> BSpline:
    """Fit a B-spline to a displacement, by least squares over the samples.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled; its axes must agree with those of the lattice.
        lattice: Control points, see :func:`spline_lattice`.
        order: Of the spline.

    Raises:
        InputError: The axes differ.
    """
    where = positions(lattice, grid)
    if where is None:
        raise InputError(
            "fit_bspline needs a lattice along the axes of the grid; make it with spline_lattice(grid, ...)."
        )
    matrices = [
        torch.linalg.pinv(spline_matrix(t, n, order), rtol=1e-6) for t, n in zip(where, lattice.shape, strict=True)
    ]
    return BSpline(apply_separable(displacement, matrices), lattice, order)


def itk_domain(lattice: Grid, order: int) -> tuple[list[float], list[float], list[int]]:
    """Return origin, physical size and mesh of ITK's B-spline domain, the lattice without its margin."""
    direction, spacing = lattice.direction[0].double(), lattice.spacing[0].double()
    origin = lattice.origin[0].double() + direction @ (spacing * (order - 1) / 2)
    mesh = [n - order for n in reversed(lattice.shape)]
    size = [m * float(s) for m, s in zip(mesh, spacing, strict=True)]
    return [float(o) for o in origin], size, mesh
