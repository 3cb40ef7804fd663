"""A free-form deformation by radial kernels on a lattice of control points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.grid import Grid
from learnreg.transforms.displacement import check_field
from learnreg.transforms.lattice import Basis, FreeForm, gathered, positions
from learnreg.transforms.radial_functions import Wendland, check_smoothness, root, wendland
from learnreg.typing import FieldTensor, PointTensor

REACH = 2  # support of a kernel, in spacings of the lattice


@dataclass(frozen=True, eq=False)
class KernelBasis(Basis):
    """Kernels of a lattice at the samples of a grid, each cell of which has the same samples.

    Args:
        grid: Where they are evaluated.
        weights: ``(prod strides, 1, *taps)``, the kernel seen from each sample of a cell.
        strides: Samples per cell, per array axis.
        first: Control point that the first sample sees first, per array axis.
    """

    weights: Tensor
    strides: tuple[int, ...]
    first: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kernel(FreeForm[KernelBasis]):
    """Free-form deformation ``x -> x + sum_k c_k w(|x - x_k|)`` by radial kernels.

    ``w`` is Wendland's function with a radius of two lattice spacings.

    Args:
        coefficients: ``(B, D, *lattice.shape)``, mm, components ``(x, y, z)``.
        lattice: Control points, see :func:`kernel_lattice`.
        smoothness: ``"C2"``, ``"C4"`` or ``"C6"``.
        basis: See :class:`learnreg.transforms.FreeForm`.

    Raises:
        InputError: The coefficients do not fit the lattice, or the smoothness is unknown.

    Source:
        Jud et al., Sparse kernel machines for discontinuous registration, IPMI 2017.
    """

    coefficients: FieldTensor
    lattice: Grid
    smoothness: Wendland = "C4"
    basis: KernelBasis | None = None

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

    def basis_on(self, grid: Grid) -> KernelBasis | None:
        where = positions(self.lattice, grid)
        if where is None or not all(_is_subdivision(t) for t in where):
            return None
        return _phases(grid, where, self.smoothness)

    def expand(self, basis: KernelBasis) -> FieldTensor:
        return _subdivided(self.coefficients, basis)


def kernel_lattice(grid: Grid, stride: int) -> Grid:
    """Return control points at every ``stride``-th sample of ``grid``, centered, with two more beyond each border.

    An axis shorter than ``stride`` gets the control points of an axis of length ``stride``.
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
    """Return whether a whole number of samples fits between two control points."""
    if len(t) < 2:
        return True
    stride = 1 / float(t[1] - t[0])
    return stride > 0.5 and abs(stride - round(stride)) * len(t) < 1e-2


def _subdivided(coefficients: Tensor, basis: KernelBasis) -> Tensor:
    """Evaluate kernels where each lattice cell has the same samples, by one convolution of the small lattice.

    Each sample of a cell is an output channel whose weights are the kernel seen from there; the channels are then
    interleaved in space. A transposed convolution with a stride computes the same, but not as one matrix product of the
    lattice's size.
    """
    batch, ndim, *shape = coefficients.shape
    strides, taps = basis.strides, basis.weights.shape[-1]
    cells = [-(-n // s) for n, s in zip(basis.grid.shape, strides, strict=True)]
    pads: list[int] = []
    for n, first, c in zip(reversed(shape), reversed(basis.first), reversed(cells), strict=True):
        pads += [-first, first + c - 1 + taps - n]
    padded = F.pad(coefficients.reshape(batch * ndim, 1, *shape), pads)
    with torch.autocast(coefficients.device.type, enabled=False):
        phases = (F.conv3d if ndim == 3 else F.conv2d)(padded, basis.weights.to(padded))  # (B D, prod strides, *cells)
    phases = phases.reshape(batch, ndim, *strides, *cells)
    order = [0, 1] + [i for axis in range(ndim) for i in (2 + ndim + axis, 2 + axis)]
    fine = phases.permute(order).reshape(batch, ndim, *[c * s for c, s in zip(cells, strides, strict=True)])
    for axis, n in enumerate(basis.grid.shape):
        fine = fine.narrow(axis + 2, 0, n)
    return fine


def _phases(grid: Grid, where: tuple[Tensor, ...], smoothness: Wendland) -> KernelBasis:
    """Evaluate the kernel for each sample of a cell."""
    strides = [round(1 / float(t[1] - t[0])) if len(t) > 1 else 1 for t in where]
    bases = [int(t[0].floor()) - (REACH - 1) for t in where]
    taps = 2 * REACH + 1
    squares = []  # (stride, taps) per axis
    for t, s, base in zip(where, strides, bases, strict=True):
        offset = float(t[0]) - base + torch.arange(s, dtype=torch.float64) / s
        squares.append((offset[:, None] - torch.arange(taps, dtype=torch.float64)) ** 2)
    square = squares[0]
    for axis, other in enumerate(squares[1:], start=1):
        square = _outer_sum(square, other, axis)
    weights = wendland(square.sqrt() / REACH, smoothness)
    return KernelBasis(grid, weights.reshape(-1, 1, *[taps] * len(where)), tuple(strides), tuple(bases))


def _outer_sum(square: Tensor, other: Tensor, axis: int) -> Tensor:
    """Add ``(s_1.., t_1..)`` and ``(s, t)`` to ``(s_1.., s, t_1.., t)``."""
    strides, taps = square.shape[:axis], square.shape[axis:]
    left = square.reshape(*strides, 1, *taps, 1)
    right = other.reshape(*[1] * axis, other.shape[0], *[1] * axis, other.shape[1])
    return left + right
