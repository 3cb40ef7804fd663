"""Free-form deformations: control points on a lattice, for a displacement or a velocity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.optimization.dense import FieldKind, check_kind, starting_field
from learnreg.optimization.parametrization import Parametrization
from learnreg.transforms import BSpline, Kernel, Transform, Velocity, fit_bspline, kernel_lattice, spline_lattice
from learnreg.transforms.radial_functions import Wendland
from learnreg.typing import CoefficientTensor, FieldTensor

SplineT = TypeVar("SplineT", BSpline, Kernel)


class FreeFormParametrization(Parametrization, Generic[SplineT]):
    """Control points of a displacement, or of a stationary velocity.

    A velocity is sampled on a grid and then integrated by scaling and squaring.

    Args:
        grid: Fixed grid of the level.
        start: Transform to start from, fitted by least squares; ``None`` is the identity.
        kind: ``"displacement"``, or ``"velocity"`` for a diffeomorphism.
        spacing: Spacing of the control points, in voxels of the level's fixed grid.
        sampling: Spacing of the samples of a velocity, in voxels of the level's fixed grid.
        steps: Number of squarings of a velocity.

    Raises:
        InputError: The kind is unknown, or no velocity is close to ``start``.
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        kind: FieldKind = "displacement",
        spacing: float = 4.0,
        sampling: float = 2.0,
        steps: int = 3,
    ) -> None:
        super().__init__()
        check_kind(kind)
        self.kind, self.spacing, self.sampling, self.steps = kind, float(spacing), float(sampling), int(steps)
        self.grid = grid if kind == "displacement" else grid.coarsened(sampling, smallest=4)
        self.lattice = self.lattice_over(grid)
        coefficients = grid.affine.new_zeros(1, grid.ndim, *self.lattice.shape)
        self.prototype: SplineT = self.spline(coefficients).with_basis(self.grid)
        if start is not None:
            coefficients = self.fitted(starting_field(start, self.grid, kind, steps=steps))
        self.coefficients = nn.Parameter(coefficients)

    @abstractmethod
    def lattice_over(self, grid: Grid) -> Grid:
        """Return the lattice of the control points of a level.

        Args:
            grid: Fixed grid of the level.

        Returns:
            Grid whose samples are the control points; it extends beyond ``grid`` as far as the basis needs.
        """

    @abstractmethod
    def spline(self, coefficients: CoefficientTensor) -> SplineT:
        """Return the spline of coefficients, as a displacement.

        Args:
            coefficients: ``(1, D, *lattice.shape)``, mm.

        Returns:
            Spline on ``self.lattice``.
        """

    def on_level(self, coefficients: CoefficientTensor) -> SplineT:
        """Return the spline of coefficients, with the basis on the level's grid already computed."""
        return replace(self.prototype, coefficients=coefficients)

    @abstractmethod
    def fitted(self, field: FieldTensor) -> CoefficientTensor:
        """Fit coefficients to a field by least squares.

        Args:
            field: ``(1, D, *self.grid.shape)``, mm, on ``self.grid``.

        Returns:
            ``(1, D, *lattice.shape)``, mm.
        """

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that create another level of the same kind."""
        return {"kind": self.kind, "spacing": self.spacing, "sampling": self.sampling, "steps": self.steps}

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Transform:
        return self._transform(self.coefficients)

    def _transform(self, coefficients: Tensor) -> Transform:
        spline = self.on_level(coefficients)
        if self.kind == "displacement":
            return spline
        return Velocity(spline.displacement(self.grid), self.grid, self.steps)

    def refined(self, grid: Grid) -> FreeFormParametrization[SplineT]:
        with torch.no_grad():
            now = self._transform(self.coefficients)
        return type(self)(grid, now, **self.settings())


class BSplineParametrization(FreeFormParametrization[BSpline]):
    """B-spline on a lattice of control points, see :class:`learnreg.transforms.BSpline`.

    Args:
        grid: See :class:`FreeFormParametrization`.
        start: See :class:`FreeFormParametrization`.
        order: 1 (linear), 2 (quadratic) or 3 (cubic).
        kind: See :class:`FreeFormParametrization`.
        spacing: See :class:`FreeFormParametrization`.
        sampling: See :class:`FreeFormParametrization`.
        steps: See :class:`FreeFormParametrization`.

    Source:
        Rueckert et al., IEEE TMI 1999; as a velocity, Modat et al., Parametric non-rigid registration using a
        stationary velocity field, MMBIA 2012.

    Example:
        >>> parametrization = BSplineParametrization(learnreg.Grid.regular((16, 16)), spacing=4)
        >>> parametrization.coefficients.shape  # 4 control points per axis, and 3 outside for the cubic basis
        torch.Size([1, 2, 7, 7])
        >>> type(parametrization()).__name__
        'BSpline'
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        order: int = 3,
        kind: FieldKind = "displacement",
        spacing: float = 4.0,
        sampling: float = 2.0,
        steps: int = 3,
    ) -> None:
        self.order = order  # set first: the constructor of the base class calls lattice_over()
        super().__init__(grid, start, kind=kind, spacing=spacing, sampling=sampling, steps=steps)

    def lattice_over(self, grid: Grid) -> Grid:
        return spline_lattice(grid, self.spacing * float(grid.spacing.min()), self.order)

    def spline(self, coefficients: CoefficientTensor) -> BSpline:
        return BSpline(coefficients, self.lattice, self.order)

    def fitted(self, field: FieldTensor) -> CoefficientTensor:
        return fit_bspline(field, self.grid, self.lattice, self.order).coefficients

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "order": self.order}


class KernelParametrization(FreeFormParametrization[Kernel]):
    """Wendland's radial functions on a lattice of control points, see :class:`learnreg.transforms.Kernel`.

    Args:
        grid: See :class:`FreeFormParametrization`.
        start: See :class:`FreeFormParametrization`.
        smoothness: ``"C2"``, ``"C4"`` or ``"C6"``.
        kind: See :class:`FreeFormParametrization`.
        spacing: See :class:`FreeFormParametrization`; rounded to whole voxels, or samples of a velocity.
        sampling: See :class:`FreeFormParametrization`.
        steps: See :class:`FreeFormParametrization`.

    Example:
        >>> parametrization = KernelParametrization(learnreg.Grid.regular((16, 16)), kind="velocity")
        >>> type(parametrization()).__name__
        'Velocity'
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        smoothness: Wendland = "C4",
        kind: FieldKind = "displacement",
        spacing: float = 4.0,
        sampling: float = 2.0,
        steps: int = 3,
    ) -> None:
        self.smoothness: Wendland = smoothness  # set first: the constructor of the base class calls spline()
        super().__init__(grid, start, kind=kind, spacing=spacing, sampling=sampling, steps=steps)

    def lattice_over(self, grid: Grid) -> Grid:
        if self.kind == "displacement":
            return kernel_lattice(grid, max(1, round(self.spacing)))
        return kernel_lattice(self.grid, max(1, round(self.spacing / self.sampling)))

    def spline(self, coefficients: CoefficientTensor) -> Kernel:
        return Kernel(coefficients, self.lattice, self.smoothness)

    def fitted(self, field: FieldTensor) -> CoefficientTensor:
        shape = (field.shape[0], self.grid.ndim, *self.lattice.shape)
        return least_squares(lambda c: self.on_level(c).displacement(self.grid), field, shape)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "smoothness": self.smoothness}


def least_squares(
    linear: Callable[[Tensor], Tensor], target: Tensor, shape: tuple[int, ...], *, iterations: int = 50
) -> Tensor:
    """Solve ``argmin_c |linear(c) - target|^2`` by conjugate gradients on the normal equations.

    Args:
        linear: Differentiable linear function ``A`` of a tensor of shape ``shape``.
        target: Any shape, that of the output of ``linear``.
        shape: Shape of the solution.
        iterations: Maximum number of iterations.

    Returns:
        ``c``, of shape ``shape``.
    """
    # The adjoint A^T y is the gradient of <A c, y> for c. Since A is linear, one graph serves all products.
    probe = target.new_zeros(shape).requires_grad_()
    with torch.enable_grad():
        image = linear(probe)

    def adjoint(values: Tensor) -> Tensor:
        return torch.autograd.grad(image, probe, values, retain_graph=True)[0]

    solution, residual = target.new_zeros(shape), adjoint(target)
    direction, square = residual, residual.square().sum()
    enough = 1e-10 * square
    for _ in range(iterations):
        if bool(square <= enough):
            break
        with torch.no_grad():
            product = adjoint(linear(direction))
            rate = square / (direction * product).sum()
            solution, residual = solution + rate * direction, residual - rate * product
            following = residual.square().sum()
            direction, square = residual + following / square * direction, following
    return solution
