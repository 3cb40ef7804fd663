"""``Affine``: a linear map and a translation in homogeneous coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.errors import InputError
from learnreg.fields import channels_first
from learnreg.grid import Grid, apply_affine
from learnreg.sampling import SeparableMap
from learnreg.separable import apply_separable
from learnreg.transforms.base import Transform
from learnreg.typing import FieldTensor, MatrixTensor, OneMatrix, PointTensor

LinearKind = Literal["translation", "rigid", "similarity", "affine"]


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """Affine map ``x -> A x + t``; rigid motions are a special case.

    Args:
        matrix: ``(B, D+1, D+1)`` or ``(D+1, D+1)``, homogeneous, mm LPS to mm LPS.

    Raises:
        InputError: The matrix is not homogeneous 2-D or 3-D.

    Example:
        >>> shift = Affine.translation([1.0, 0.0, 0.0])
        >>> shift.then(shift)(torch.zeros(1, 1, 3))
        tensor([[[2., 0., 0.]]])
    """

    matrix: MatrixTensor | OneMatrix

    def __post_init__(self) -> None:
        matrix = self.matrix if self.matrix.ndim == 3 else self.matrix.unsqueeze(0)
        if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2] or matrix.shape[1] not in (3, 4):
            raise InputError(
                f"Affine.matrix must be (B, 3, 3) in 2-D or (B, 4, 4) in 3-D, got {tuple(self.matrix.shape)}."
            )
        object.__setattr__(self, "matrix", matrix)

    @staticmethod
    def identity(ndim: int, *, dtype: torch.dtype = torch.float32) -> Affine:
        """Return the map ``x -> x``."""
        return Affine(torch.eye(ndim + 1, dtype=dtype))

    @staticmethod
    def translation(vector: Tensor | Sequence[float]) -> Affine:
        """Return ``x -> x + vector``; ``vector`` is ``(D,)`` or ``(B, D)``, mm."""
        shift = torch.as_tensor(vector)
        shift = shift if shift.is_floating_point() else shift.float()
        shift = shift if shift.ndim == 2 else shift.unsqueeze(0)
        return Affine(homogeneous(torch.eye(shift.shape[-1]).to(shift).expand(len(shift), -1, -1), shift))

    @staticmethod
    def about(
        linear: Float[Tensor, "#B D D"], translation: Float[Tensor, "#B D"], center: Float[Tensor, "#B D"]
    ) -> Affine:
        """Return ``x -> L (x - c) + c + t`` for ``L`` ``(B, D, D)``, ``t`` ``(B, D)`` mm and ``c`` ``(B, D)`` mm."""
        offset = center + translation - (linear @ center.unsqueeze(-1)).squeeze(-1)
        return Affine(homogeneous(linear, offset))

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return self.matrix.shape[-1] - 1

    def __call__(self, points: PointTensor) -> PointTensor:
        return apply_affine(self.matrix, points)

    def separable(self, grid: Grid) -> SeparableMap:
        """Return the displacement at the corners of the grid, with linear interpolation between them."""
        corners = grid.corners
        field = channels_first(self(corners.points) - corners.points)
        ramps = [torch.linspace(0, 1, n, dtype=grid.dtype, device=grid.device) for n in grid.shape]
        return SeparableMap(field, tuple(torch.stack([1 - t, t], dim=1) for t in ramps))

    def displacement(self, grid: Grid) -> FieldTensor:
        found = self.separable(grid)
        return apply_separable(found.field, found.matrices)

    def inverse(self) -> Affine:
        return Affine(torch.linalg.inv(self.matrix.double()).to(self.matrix.dtype))

    def then(self, following: Affine) -> Affine:
        """Return ``x -> following(self(x))`` as one matrix."""
        return Affine(following.matrix @ self.matrix)

    def to(self, *args: object, **kwargs: object) -> Affine:
        return Affine(self.matrix.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> Affine:
        return Affine(self.matrix.detach())


def homogeneous(linear: Float[Tensor, "#B D D"], offset: Float[Tensor, "B D"]) -> MatrixTensor:
    """Combine ``(B, D, D)`` matrices and ``(B, D)`` offsets into ``(B, D+1, D+1)``."""
    batch, ndim = offset.shape
    top = torch.cat([linear.expand(batch, -1, -1), offset.unsqueeze(-1)], dim=-1)
    bottom = torch.zeros(batch, 1, ndim + 1, dtype=top.dtype, device=top.device)
    bottom[..., -1] = 1
    return torch.cat([top, bottom], dim=1)


def align_centers(fixed: Grid, moving: Grid) -> Affine:
    """Return the translation that moves the center of one field of view onto the center of the other."""
    return Affine.translation(moving.center - fixed.center)


def linear_basis(kind: LinearKind, ndim: int) -> Tensor:
    """Return the generators of the linear part, ``(K, D, D)``; their matrix exponentials are the linear maps of a kind.

    Raises:
        InputError: The kind is unknown.
    """
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
    raise InputError(f"Unknown linear transform {kind!r}; choose translation, rigid, similarity or affine.")


def linear_through_landmarks(
    fixed: PointTensor,
    moving: PointTensor,
    kind: LinearKind = "affine",
    *,
    ridge: float = 1e-6,
    weights: Float[Tensor, "B K"] | None = None,
) -> Affine:
    """Fit a linear map of a kind to pairs of landmarks, by least squares.

    Args:
        fixed: ``(B, K, D)``, mm LPS.
        moving: ``(B, K, D)``, mm LPS, in the same order.
        kind: ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
        ridge: Weight that draws the linear part of an affine map to the identity, relative to the landmarks' squared
            distances from their center. It decides what landmarks in a plane leave undetermined.
        weights: Of the squared distances, at least 0; ``None`` weights all landmarks equally.

    Returns:
        The transform, differentiable in the landmarks.

    Raises:
        InputError: The shapes differ, or the kind is unknown.

    Source:
        Umeyama, Least-squares estimation of transformation parameters between two point patterns, IEEE TPAMI 1991.

    Example:
        >>> points = torch.rand(1, 5, 3)
        >>> found = linear_through_landmarks(points, points + 2.0, "rigid")
        >>> torch.allclose(found(points), points + 2.0, atol=1e-4)
        True
    """
    if fixed.shape != moving.shape or fixed.ndim != 3:
        raise InputError(f"Landmarks come in pairs (B, K, D), got {tuple(fixed.shape)} and {tuple(moving.shape)}.")
    x, y = fixed.double(), moving.double()
    shares = x.new_ones(1, x.shape[1]) if weights is None else weights.double()
    shares = (shares / shares.sum(1, keepdim=True).clamp(min=1e-12)).unsqueeze(-1)
    center, target = (shares * x).sum(1), (shares * y).sum(1)
    x, y = x - center.unsqueeze(1), y - target.unsqueeze(1)
    identity = torch.eye(x.shape[-1]).to(x)
    covariance, spread = y.mT @ (shares * x), x.mT @ (shares * x)
    size = (shares * x.square()).sum((1, 2)).reshape(-1, 1, 1)
    if kind == "translation":
        linear = identity.expand(len(x), -1, -1)
    elif kind == "affine":
        drawn = (ridge * size + 1e-12) * identity
        linear = torch.linalg.solve(spread + drawn, (covariance + drawn).mT).mT
    elif kind in ("rigid", "similarity"):
        left, stretch, right = torch.linalg.svd(covariance)
        signs = torch.ones_like(stretch)
        signs[:, -1] = torch.linalg.det(left @ right).sign()
        linear = left @ torch.diag_embed(signs) @ right
        if kind == "similarity":
            linear = linear * ((stretch * signs).sum(-1).reshape(-1, 1, 1) / size.clamp(min=1e-12))
    else:
        raise InputError(f"Unknown linear transform {kind!r}; choose translation, rigid, similarity or affine.")
    return Affine(Affine.about(linear, target - center, center).matrix.to(fixed.dtype))
