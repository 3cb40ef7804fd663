"""Transforms of radial functions: on a lattice of control points, or through landmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.grid import Grid, apply_affine
from learnreg.numerics import full_precision, remembered
from learnreg.transforms.affine import homogeneous
from learnreg.transforms.base import Transform
from learnreg.transforms.displacement import check_field
from learnreg.transforms.inverse import Inverse
from learnreg.transforms.kernels import Radial, Wendland, check_smoothness, radial, root, wendland
from learnreg.transforms.lattice import FreeForm, gathered, positions
from learnreg.typing import FieldTensor, MatrixTensor, PointTensor

REACH = 2  # support of a kernel, in spacings of the lattice
CHUNK = 2**22  # pairs of point and landmark that are held at once


@dataclass(frozen=True, eq=False)
class Kernel(FreeForm):
    """``x -> x + sum_k c_k w(|x - x_k|)``, Wendland's function of a radius of two lattice spacings.

    Args:
        coefficients: ``(B, D, *lattice.shape)``, mm, components ``(x, y, z)``.
        lattice: Where the control points lie; see :func:`kernel_lattice`.
        smoothness: ``"C2"``, ``"C4"`` or ``"C6"``.

    Raises:
        ValueError: The coefficients do not fit the lattice, or another smoothness.

    Source:
        Jud et al., Sparse kernel machines for discontinuous registration, IPMI 2017.
    """

    coefficients: FieldTensor
    lattice: Grid
    smoothness: Wendland = "C4"

    def __post_init__(self) -> None:
        check_field("Kernel", self.coefficients, self.lattice)
        check_smoothness(self.smoothness)

    def offsets(self, points: PointTensor) -> Tensor:
        position = self.lattice.to_index(points)
        base = position.detach().floor().long() - (REACH - 1)
        relative = position - base

        def weight(step: tuple[int, ...]) -> Tensor:
            away = relative - torch.tensor(step, dtype=relative.dtype, device=relative.device)
            return wendland(root(away.square().sum(-1)) / REACH, self.smoothness)

        return gathered(self.coefficients, base, 2 * REACH, weight)

    def on_aligned(self, grid: Grid) -> FieldTensor | None:
        where = positions(self.lattice, grid)
        if where is None or not all(_is_subdivision(t) for t in where):
            return None
        return _subdivided(self.coefficients, where, self.smoothness)


def kernel_lattice(grid: Grid, stride: int) -> Grid:
    """Control points every ``stride`` samples of ``grid``, in the middle of it and two beyond its border.

    Along an axis shorter than ``stride`` every sample counts as one of ``stride``.
    """
    shape, first = [], []
    for n in reversed(grid.shape):  # x, y, z
        inner = max(-(-(n - 1) // stride), 1) + 1
        shape.append(inner + 2)
        first.append((n - 1) / 2 - stride * (inner + 1) / 2)
    affine = grid.affine.double().clone()
    linear = affine[:, : grid.ndim, : grid.ndim].clone()
    start = torch.tensor(first, dtype=torch.float64, device=grid.device)
    affine[:, : grid.ndim, grid.ndim] += linear @ start
    affine[:, : grid.ndim, : grid.ndim] = linear * stride
    return Grid(tuple(reversed(shape)), affine.to(grid.dtype))


def _is_subdivision(t: Tensor) -> bool:
    """Whether a whole number of samples fits between two control points."""
    if len(t) < 2:
        return True
    stride = 1 / float(t[1] - t[0])
    return stride > 0.5 and abs(stride - round(stride)) * len(t) < 1e-2


def _subdivided(coefficients: Tensor, where: tuple[Tensor, ...], smoothness: Wendland) -> Tensor:
    """Evaluation where each lattice cell has the same samples: one convolution of the small lattice.

    Each sample of a cell is an output channel, with the kernel seen from there as its weights; the
    channels are then laid out in space. That is what a transposed convolution with a stride computes,
    in one matrix product of the size of the lattice.
    """
    batch, ndim, *shape = coefficients.shape
    weights, strides, bases = _phases(smoothness, *where)
    cells = [-(-len(t) // s) for t, s in zip(where, strides, strict=True)]
    taps = weights.shape[-1]
    pads: list[int] = []
    for n, base, c in zip(reversed(shape), reversed(bases), reversed(cells), strict=True):
        pads += [-base, base + c - 1 + taps - n]
    padded = F.pad(coefficients.reshape(batch * ndim, 1, *shape), pads)
    with torch.autocast(coefficients.device.type, enabled=False):
        phases = (F.conv3d if ndim == 3 else F.conv2d)(padded, weights.to(padded))  # (B D, prod strides, *cells)
    phases = phases.reshape(batch, ndim, *strides, *cells)
    order = [0, 1] + [i for axis in range(ndim) for i in (2 + ndim + axis, 2 + axis)]
    fine = phases.permute(order).reshape(batch, ndim, *[c * s for c, s in zip(cells, strides, strict=True)])
    for axis, t in enumerate(where):
        fine = fine.narrow(axis + 2, 0, len(t))
    return fine


@remembered
def _phases(smoothness: Wendland, *where: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """The kernel seen from each sample of a cell, ``(prod strides, 1, *taps)``; strides; first control points."""
    strides = [round(1 / float(t[1] - t[0])) if len(t) > 1 else 1 for t in where]
    bases = [int(t[0].floor()) - (REACH - 1) for t in where]
    taps = 2 * REACH + 1
    squares = []  # (stride, taps) an axis
    for t, s, base in zip(where, strides, bases, strict=True):
        offset = float(t[0]) - base + torch.arange(s, dtype=torch.float64) / s
        squares.append((offset[:, None] - torch.arange(taps, dtype=torch.float64)) ** 2)
    square = squares[0]
    for axis, other in enumerate(squares[1:], start=1):
        square = _outer_sum(square, other, axis)
    weights = wendland(square.sqrt() / REACH, smoothness)
    return weights.reshape(-1, 1, *[taps] * len(where)), strides, bases


def _outer_sum(square: Tensor, other: Tensor, axis: int) -> Tensor:
    """``(s_1.., t_1..)`` and ``(s, t)`` to ``(s_1.., s, t_1.., t)``, added."""
    strides, taps = square.shape[:axis], square.shape[axis:]
    left = square.reshape(*strides, 1, *taps, 1)
    right = other.reshape(*[1] * axis, other.shape[0], *[1] * axis, other.shape[1])
    return left + right


@dataclass(frozen=True, eq=False)
class LandmarkSpline(Transform):
    """``x -> A x + t + sum_k c_k f(|x - x_k|)``, a smooth map that takes landmarks where they belong.

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
        """Point by point; see :class:`Inverse`, which also gives the residual."""
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
    """``(B, P, K)`` mm^2; from differences, which keep what products of large coordinates lose."""
    return (first.unsqueeze(2) - second.unsqueeze(1)).square().sum(-1)


def spline_through_landmarks(
    fixed: PointTensor,
    moving: PointTensor,
    *,
    kernel: Radial = "thin-plate",
    radius: float = 50.0,
    smoothing: float = 0.0,
) -> LandmarkSpline:
    """The smoothest map that takes each fixed landmark to its counterpart; affine maps are free.

    Args:
        fixed: ``(B, K, D)``, mm LPS, at least D + 1 that do not lie in a plane (2-D: on a line).
        moving: ``(B, K, D)``, mm LPS, in the same order.
        kernel: ``"thin-plate"`` (least bending energy), or Wendland's ``"C2"``, ``"C4"``, ``"C6"``.
        radius: Of a Wendland function, mm.
        smoothing: 0 meets the landmarks; more trades accuracy there for smoothness.

    Returns:
        The transform. Differentiable in the landmarks.

    Raises:
        ValueError: The shapes differ, there are too few landmarks, or they lie in a plane.

    Source:
        Bookstein, Principal warps, IEEE TPAMI 1989; Rohr et al., Landmark-based elastic registration
        using approximating thin-plate splines, IEEE TMI 2001; Fornefett et al., Radial basis functions
        with compact support for elastic registration, Image Vis. Comput. 2001.
    """
    if fixed.shape != moving.shape or fixed.ndim != 3:
        raise ValueError(f"Landmarks come in pairs (B, K, D), got {tuple(fixed.shape)} and {tuple(moving.shape)}.")
    batch, count, ndim = fixed.shape
    if count <= ndim:
        raise ValueError(f"A spline through landmarks needs at least {ndim + 1} of them in {ndim}-D, got {count}.")
    x, y = fixed.double(), moving.double()
    center = x.mean(1, keepdim=True)
    x = x - center
    values = radial(kernel, radius, ndim)(_squared_distances(x, x))
    values = values + smoothing * torch.eye(count, dtype=x.dtype, device=x.device)
    polynomial = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    if int(torch.linalg.matrix_rank(polynomial, rtol=1e-6).min()) <= ndim:
        raise ValueError(f"The landmarks lie in a {'plane' if ndim == 3 else 'line'}; mark some outside of it.")
    corner = x.new_zeros(batch, ndim + 1, ndim + 1)
    system = torch.cat([torch.cat([values, polynomial], 2), torch.cat([polynomial.mT, corner], 2)], 1)
    solution = torch.linalg.solve(system, torch.cat([y, y.new_zeros(batch, ndim + 1, ndim)], 1))
    linear, offset = solution[:, count:-1].mT, solution[:, -1]
    offset = offset - (linear @ center.mT).squeeze(-1)
    affine = homogeneous(linear, offset)
    return LandmarkSpline(
        fixed, solution[:, :count].to(fixed.dtype), affine.to(fixed.dtype), kernel=kernel, radius=float(radius)
    )
