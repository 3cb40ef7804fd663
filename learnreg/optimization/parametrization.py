"""Parametrizations: the free parameters of one pair, as modules that return a transform.

They have a network's interface, ``forward(fixed, moving) -> Transform``, so that whatever
minimizes an objective over a network's weights minimizes it over them. Every parameter is in
mm, so a learning rate is the size of a step in mm.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms import Affine, Displacement, Transform, Velocity
from learnreg.typing import FieldTensor, PointTensor
from learnreg.warping import resize

LinearKind = Literal["translation", "rigid", "similarity", "affine"]
FieldKind = Literal["displacement", "velocity"]


class Parametrization(nn.Module):
    """Free parameters of one pair; ``forward(fixed, moving)`` returns the transform they stand for."""

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform: ...

    def refined(self, grid: Grid) -> Parametrization:
        """The same transform with the parameters of a finer level; ``grid`` is the level's fixed grid."""
        return self


class LinearParametrization(Parametrization):
    """Translation, rigid motion, similarity or affine map about a center.

    The linear part is a matrix exponential: of a skew matrix for a rotation, plus one isotropic
    scale for a similarity, of any matrix for an affine map. Its entries are lengths: the
    displacement they cause at ``radius`` from the center.

    Args:
        center: ``(1, D)``, mm.
        radius: mm, about half the size of the object.
        kind: ``"translation"`` (D free parameters), ``"rigid"`` (3 or 6), ``"similarity"`` (4 or
            7) or ``"affine"`` (6 or 12).

    Raises:
        ValueError: The kind is unknown.
    """

    def __init__(self, center: PointTensor, radius: float, kind: LinearKind = "affine") -> None:
        super().__init__()
        ndim = center.shape[-1]
        self.kind, self.radius = kind, float(radius)
        basis = _linear_basis(kind, ndim).to(center)
        self.center: Tensor
        self.basis: Tensor
        self.register_buffer("center", center)
        self.register_buffer("basis", basis)
        self.translation = nn.Parameter(torch.zeros_like(center))
        self.linear = nn.Parameter(center.new_zeros(1, len(basis)))

    def forward(self, fixed: Image, moving: Image) -> Affine:
        generator = torch.einsum("bk,kij->bij", self.linear / self.radius, self.basis)
        return Affine.about(torch.matrix_exp(generator), self.translation, self.center)


def _linear_basis(kind: str, ndim: int) -> Tensor:
    """``(K, D, D)`` generators of the linear part."""
    units = torch.eye(ndim * ndim).reshape(-1, ndim, ndim)
    skew = [units[i * ndim + j] - units[j * ndim + i] for i in range(ndim) for j in range(i)]
    if kind == "translation":
        return torch.zeros(0, ndim, ndim)
    if kind == "rigid":
        return torch.stack(skew)
    if kind == "similarity":
        return torch.stack([*skew, torch.eye(ndim)])
    if kind == "affine":
        return units
    raise ValueError(f"Unknown linear transform {kind!r}; choose translation, rigid, similarity or affine.")


class FieldParametrization(Parametrization):
    """A dense displacement or stationary velocity on a control grid.

    Args:
        field: ``(1, D, *grid.shape)``, mm, where the search starts.
        grid: The control grid; coarser than the image where a smooth field suffices.
        kind: ``"velocity"`` for a diffeomorphism, or ``"displacement"``.
        coarsening: Spacing of the control grid in voxels of the level's fixed grid.
        steps: Squarings of a velocity.
    """

    def __init__(
        self,
        field: FieldTensor,
        grid: Grid,
        kind: FieldKind = "velocity",
        *,
        coarsening: float = 2.0,
        steps: int = 5,
    ) -> None:
        super().__init__()
        if kind not in ("displacement", "velocity"):
            raise ValueError(f"Unknown field {kind!r}; choose displacement or velocity.")
        self.kind, self.coarsening, self.steps = kind, float(coarsening), int(steps)
        self.grid = grid
        self.field = nn.Parameter(field.detach().clone())

    @staticmethod
    def from_transform(
        transform: Transform | None,
        grid: Grid,
        kind: FieldKind = "velocity",
        *,
        coarsening: float = 2.0,
        steps: int = 5,
    ) -> FieldParametrization:
        """Start from a transform; ``grid`` is the fixed grid of the first level.

        Raises:
            ValueError: A velocity is asked for and the transform is not one.
        """
        control = grid.coarsened(coarsening, smallest=4)
        if transform is None:
            field = control.affine.new_zeros(1, grid.ndim, *control.shape)
        elif kind == "displacement":
            field = transform.displacement(control)
        elif isinstance(transform, Velocity):
            field = Displacement(transform.field, transform.grid).displacement(control)
        else:
            raise ValueError(
                f"A velocity cannot start from a {type(transform).__name__}; "
                "give it as `initial`, or search a displacement."
            )
        return FieldParametrization(field, control, kind, coarsening=coarsening, steps=steps)

    def forward(self, fixed: Image, moving: Image) -> Displacement | Velocity:
        if self.kind == "velocity":
            return Velocity(self.field, self.grid, self.steps)
        return Displacement(self.field, self.grid)

    def refined(self, grid: Grid) -> FieldParametrization:
        control = grid.coarsened(self.coarsening, smallest=4)
        field = resize(self.field.detach(), control.shape)
        return FieldParametrization(field, control, self.kind, coarsening=self.coarsening, steps=self.steps)
