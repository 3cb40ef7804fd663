"""A spline through landmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import apply_affine
from learnreg.numerics import full_precision
from learnreg.transforms.affine import homogeneous
from learnreg.transforms.base import Transform
from learnreg.transforms.inverse import Inverse
from learnreg.transforms.radial_functions import Radial, radial
from learnreg.typing import MatrixTensor, PointTensor

CHUNK = 2**22  # pairs of point and landmark per chunk


@dataclass(frozen=True, eq=False)
class LandmarkSpline(Transform):
    """Spline through landmarks, ``x -> A x + t + sum_k c_k f(|x - x_k|)``; see :func:`spline_through_landmarks`.

    Args:
        centers: ``(B, K, D)``, mm, the fixed landmarks.
        coefficients: ``(B, K, D)``, mm in the units of the kernel.
        affine: ``(B, D+1, D+1)``, the affine part.
        kernel: ``"thin-plate"``, or Wendland's ``"C2"``, ``"C4"`` or ``"C6"``, which act locally.
        radius: Of a Wendland function, mm.
    """

    centers: PointTensor
    coefficients: PointTensor
    affine: MatrixTensor
    kernel: Radial = "thin-plate"
    radius: float = 1.0

    @property
    def ndim(self) -> int:
        return self.centers.shape[-1]

    @full_precision
    def __call__(self, points: PointTensor) -> PointTensor:
        flat = points.reshape(points.shape[0], -1, points.shape[-1])
        ndim = points.shape[-1]
        function = radial(self.kernel, self.radius, ndim)
        length = max(1, CHUNK // self.centers.shape[1])
        centers, coefficients = self.centers.to(flat.dtype), self.coefficients.to(flat.dtype)
        bent = [function(_squared_distances(part, centers)) @ coefficients for part in flat.split(length, dim=1)]
        mapped = apply_affine(self.affine, flat) + torch.cat(bent, dim=1)
        return mapped.reshape(mapped.shape[0], *points.shape[1:])

    def inverse(self) -> Inverse:
        """Invert point by point; see :class:`Inverse`, which also returns the residual."""
        ndim = self.centers.shape[-1]
        return Inverse(self, self.affine[:, :ndim, :ndim])

    def to(self, *args: object, **kwargs: object) -> LandmarkSpline:
        return self._with(lambda part: part.to(*args, **kwargs))  # type: ignore[call-overload]

    def detach(self) -> LandmarkSpline:
        return self._with(Tensor.detach)

    def _with(self, change: Callable[[Tensor], Tensor]) -> LandmarkSpline:
        return replace(
            self, centers=change(self.centers), coefficients=change(self.coefficients), affine=change(self.affine)
        )


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Compute squared distances ``(B, P, K)`` in mm^2.

    Differences are more accurate than products of large coordinates.
    """
    return (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(-1)


def spline_through_landmarks(
    fixed: PointTensor,
    moving: PointTensor,
    *,
    kernel: Radial = "thin-plate",
    radius: float = 50.0,
    smoothing: float | Tensor = 0.0,
) -> LandmarkSpline:
    """Fit the smoothest map that takes each fixed landmark to its counterpart; affine maps are not penalized.

    Args:
        fixed: ``(B, K, D)``, mm LPS, at least D + 1 landmarks that do not lie in a plane (in 2-D: on a line).
        moving: ``(B, K, D)``, mm LPS, in the same order.
        kernel: ``"thin-plate"`` (lowest bending energy), or Wendland's ``"C2"``, ``"C4"``, ``"C6"``.
        radius: Of a Wendland function, mm.
        smoothing: 0 interpolates the landmarks; larger values trade accuracy for smoothness. One value, or
            ``(B, 1, 1)``.

    Returns:
        The transform, differentiable in the landmarks.

    Raises:
        InputError: The shapes differ, there are too few landmarks, or they lie in a plane.

    Source:
        Bookstein, Principal warps, IEEE TPAMI 1989; Rohr et al., Landmark-based elastic registration using
        approximating thin-plate splines, IEEE TMI 2001; Fornefett et al., Radial basis functions with compact support
        for elastic registration, Image Vis. Comput. 2001.

    Example:
        >>> fixed = torch.rand(1, 6, 3)
        >>> moving = fixed + 0.1 * torch.rand(1, 6, 3)
        >>> torch.allclose(spline_through_landmarks(fixed, moving)(fixed), moving, atol=1e-4)
        True
    """
    if fixed.shape != moving.shape or fixed.ndim != 3:
        raise InputError(f"Landmarks come in pairs (B, K, D), got {tuple(fixed.shape)} and {tuple(moving.shape)}.")
    batch, count, ndim = fixed.shape
    if count <= ndim:
        raise InputError(f"A spline through landmarks needs at least {ndim + 1} of them in {ndim}-D, got {count}.")
    x, y = fixed.double(), moving.double()
    center = x.mean(1, keepdim=True)
    x = x - center
    values = radial(kernel, radius, ndim)(_squared_distances(x, x))
    values = values + smoothing * torch.eye(count, dtype=x.dtype, device=x.device)
    polynomial = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    if int(torch.linalg.matrix_rank(polynomial, rtol=1e-6).min()) <= ndim:
        raise InputError(f"The landmarks lie in a {'plane' if ndim == 3 else 'line'}; mark some outside of it.")
    corner = x.new_zeros(batch, ndim + 1, ndim + 1)
    system = torch.cat([torch.cat([values, polynomial], 2), torch.cat([polynomial.mT, corner], 2)], 1)
    solution = torch.linalg.solve(system, torch.cat([y, y.new_zeros(batch, ndim + 1, ndim)], 1))
    linear, offset = solution[:, count:-1].mT, solution[:, -1]
    offset = offset - (linear @ center.mT).squeeze(-1)
    affine = homogeneous(linear, offset)
    return LandmarkSpline(
        fixed, solution[:, :count].to(fixed.dtype), affine.to(fixed.dtype), kernel=kernel, radius=float(radius)
    )
