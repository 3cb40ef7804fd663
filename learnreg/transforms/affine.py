"""``Affine``: a linear map in homogeneous coordinates; rigid motions are a case of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.fields import channels_first
from learnreg.grid import Grid, apply_affine
from learnreg.sampling import SeparableMap
from learnreg.transforms.base import Transform
from learnreg.typing import MatrixTensor, OneMatrix, PointTensor

LinearKind = Literal["translation", "rigid", "similarity", "affine"]


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """``x -> A x + t``.

    Args:
        matrix: ``(B, D+1, D+1)`` or ``(D+1, D+1)``, homogeneous, mm LPS to mm LPS.

    Raises:
        ValueError: The matrix is not homogeneous 2-D or 3-D.
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
        """The map that leaves every point."""
        return Affine(torch.eye(ndim + 1, dtype=dtype))

    @staticmethod
    def translation(vector: Tensor | Sequence[float]) -> Affine:
        """``x -> x + vector``, ``(D,)`` or ``(B, D)``, mm."""
        shift = torch.as_tensor(vector)
        shift = shift if shift.is_floating_point() else shift.float()
        shift = shift if shift.ndim == 2 else shift.unsqueeze(0)
        return Affine(homogeneous(torch.eye(shift.shape[-1]).to(shift).expand(len(shift), -1, -1), shift))

    @staticmethod
    def about(linear: Tensor, translation: Tensor, center: Tensor) -> Affine:
        """``x -> L (x - c) + c + t``: ``(B, D, D)``, ``(B, D)`` mm and ``(B, D)`` mm."""
        offset = center + translation - (linear @ center.unsqueeze(-1)).squeeze(-1)
        return Affine(homogeneous(linear, offset))

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return self.matrix.shape[-1] - 1

    def __call__(self, points: PointTensor) -> PointTensor:
        return apply_affine(self.matrix, points)

    def separable(self, grid: Grid) -> SeparableMap | None:
        """A linear map is known from the corners of a grid, and linear between them."""
        corners = grid.corners
        field = channels_first(self(corners.points) - corners.points)
        ramps = [torch.linspace(0, 1, n, dtype=grid.dtype, device=grid.device) for n in grid.shape]
        return SeparableMap(field, tuple(torch.stack([1 - t, t], dim=1) for t in ramps))

    def inverse(self) -> Affine:
        return Affine(torch.linalg.inv(self.matrix.double()).to(self.matrix.dtype))

    def then(self, following: Affine) -> Affine:
        """``x -> following(self(x))`` as one matrix."""
        return Affine(following.matrix @ self.matrix)

    def to(self, *args: object, **kwargs: object) -> Affine:
        return Affine(self.matrix.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> Affine:
        return Affine(self.matrix.detach())


def homogeneous(linear: Tensor, offset: Tensor) -> MatrixTensor:
    """``(B, D, D)`` and ``(B, D)`` to ``(B, D+1, D+1)``."""
    batch, ndim = offset.shape
    top = torch.cat([linear.expand(batch, -1, -1), offset.unsqueeze(-1)], dim=-1)
    bottom = torch.zeros(batch, 1, ndim + 1, dtype=top.dtype, device=top.device)
    bottom[..., -1] = 1
    return torch.cat([top, bottom], dim=1)


def align_centers(fixed: Grid, moving: Grid) -> Affine:
    """Translation that puts the middle of one field of view onto the other's."""
    return Affine.translation(moving.center - fixed.center)


def linear_basis(kind: LinearKind, ndim: int) -> Tensor:
    """``(K, D, D)`` generators of the linear part, whose exponentials are the linear maps of a kind.

    Raises:
        ValueError: The kind is unknown.
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
    fixed: PointTensor, moving: PointTensor, kind: LinearKind = "affine", *, ridge: float = 1e-6
) -> Affine:
    """The map of a kind that takes the fixed landmarks nearest to their counterparts, in least squares.

    Args:
        fixed: ``(B, K, D)``, mm LPS.
        moving: ``(B, K, D)``, mm LPS, in the same order.
        kind: ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
        ridge: Draws the linear part to the identity, by this share of the landmarks' mean square distance from
            their middle (an affine map alone); what landmarks in a plane leave open stays as it is.

    Returns:
        The transform. Differentiable in the landmarks.

    Raises:
        ValueError: The shapes differ, or the kind is unknown.

    Source:
        Umeyama, Least-squares estimation of transformation parameters between two point patterns,
        IEEE TPAMI 1991.
    """
    if fixed.shape != moving.shape or fixed.ndim != 3:
        raise InputError(f"Landmarks come in pairs (B, K, D), got {tuple(fixed.shape)} and {tuple(moving.shape)}.")
    x, y = fixed.double(), moving.double()
    center, target = x.mean(1), y.mean(1)
    x, y = x - center.unsqueeze(1), y - target.unsqueeze(1)
    identity = torch.eye(x.shape[-1]).to(x)
    covariance, spread = y.mT @ x, x.mT @ x
    size = x.square().sum((1, 2)).reshape(-1, 1, 1)
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
