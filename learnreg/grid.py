"""``Grid``: where the samples of an image or a field lie in the patient.

The only module that knows coordinate conventions. Index space is ``(i, j, k)`` along ``(x, y, z)``, arrays are
``(z, y, x)``, and physical space is mm in LPS, as in ITK and DICOM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.caching import UncachedState
from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.separable import map_vectors
from learnreg.typing import FieldTensor, MatrixTensor, OneMatrix, PointTensor


@dataclass(frozen=True, eq=False)
class Grid(UncachedState):
    """A regular lattice of cells in physical space, 2-D or 3-D, batched and immutable.

    Args:
        shape: Number of samples in array order, ``(z, y, x)`` or ``(y, x)``.
        affine: ``(N, D+1, D+1)`` or ``(D+1, D+1)``, homogeneous, from index ``(i, j, k)`` to mm LPS. Its columns are
            orthogonal: spacing times direction cosines. ``N`` is 1 (shared by the batch) or the batch size.

    Raises:
        InputError: The shape is not 2-D or 3-D, or the affine does not fit it.

    Example:
        >>> grid = Grid.regular((10, 20, 30), spacing=(1.0, 1.0, 2.0), origin=(0.0, 0.0, 0.0))
        >>> grid.to_index(torch.tensor([[[3.0, 4.0, 6.0]]]))
        tensor([[[3., 4., 3.]]])
    """

    shape: tuple[int, ...]
    affine: MatrixTensor | OneMatrix

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise InputError(f"Grid.shape must be 2 or 3 positive sizes, got {shape}.")
        affine = self.affine if self.affine.ndim == 3 else self.affine.unsqueeze(0)
        size = len(shape) + 1
        if affine.ndim != 3 or affine.shape[1:] != (size, size):
            raise InputError(
                f"Grid.affine must be (N, {size}, {size}) for a {len(shape)}-D shape {shape}, "
                f"got {tuple(self.affine.shape)}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @staticmethod
    def regular(
        shape: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        origin: Sequence[float] | None = None,
        direction: Sequence[Sequence[float]] | Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Grid:
        """Create a grid from ITK's terms.

        Args:
            shape: Array order ``(z, y, x)``.
            spacing: mm along ``(x, y, z)``, or one value for all axes.
            origin: mm LPS of the center of the first sample, ``(x, y, z)``; ``None`` puts the center of the grid at 0.
            direction: ``(D, D)`` direction cosines, one column per index axis; ``None`` is LPS.
            dtype: ``float32``, or ``float64`` for numerical checks.

        Raises:
            InputError: A spacing is not positive, or the direction is not orthonormal.
        """
        ndim = len(shape)
        steps = [float(spacing)] * ndim if isinstance(spacing, (int, float)) else [float(s) for s in spacing]
        if len(steps) != ndim or not all(math.isfinite(s) and s > 0 for s in steps):
            raise InputError(f"Grid spacing must be {ndim} positive values in mm, got {steps}.")
        cosines = torch.eye(ndim, dtype=torch.float64)
        if direction is not None:
            cosines = torch.as_tensor(direction, dtype=torch.float64)
        if cosines.shape != (ndim, ndim) or not torch.allclose(
            cosines.T @ cosines, torch.eye(ndim, dtype=torch.float64), atol=1e-4
        ):
            raise InputError(f"Grid direction must be an orthonormal ({ndim}, {ndim}) matrix, got {cosines.tolist()}.")
        linear = cosines * torch.tensor(steps, dtype=torch.float64)
        if origin is None:
            last = torch.tensor([n - 1 for n in reversed(shape)], dtype=torch.float64)
            first = -linear @ last / 2
        else:
            first = torch.as_tensor(origin, dtype=torch.float64)
        affine = torch.eye(ndim + 1, dtype=torch.float64)
        affine[:ndim, :ndim] = linear
        affine[:ndim, ndim] = first
        return Grid(tuple(shape), affine.to(dtype))

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the coordinates."""
        return self.affine.dtype

    @property
    def device(self) -> torch.device:
        """Device of the coordinates."""
        return self.affine.device

    @property
    def size(self) -> Tensor:
        """Number of samples along ``(x, y, z)``, ``(D,)``."""
        return torch.tensor(self.shape[::-1], dtype=self.dtype, device=self.device)

    @cached_property
    def spacing(self) -> Tensor:
        """Distance between samples in mm along the index axes ``(x, y, z)``, ``(N, D)``."""
        return self.affine[:, : self.ndim, : self.ndim].norm(dim=1)

    @property
    def direction(self) -> Tensor:
        """Direction cosines, ``(N, D, D)``, one column per index axis."""
        return self.affine[:, : self.ndim, : self.ndim] / self.spacing.unsqueeze(1)

    @property
    def origin(self) -> Tensor:
        """Center of the first sample in mm, ``(N, D)``."""
        return self.affine[:, : self.ndim, self.ndim]

    @property
    def center(self) -> Tensor:
        """Center of the field of view in mm, ``(N, D)``."""
        return apply_affine(self.affine, ((self.size - 1) / 2).expand(self.affine.shape[0], -1))

    @property
    def extent(self) -> Tensor:
        """Size of the field of view in mm along the index axes, ``(N, D)``.

        It includes the outer halves of the border cells.
        """
        return self.spacing * self.size

    @cached_property
    def inverse_affine(self) -> MatrixTensor:
        """Matrix from mm LPS to index, ``(N, D+1, D+1)``."""
        return torch.linalg.inv(self.affine.double()).to(self.dtype)

    @cached_property
    def normalizing(self) -> MatrixTensor:
        """Matrix from mm LPS to [-1, 1] over the field of view (``align_corners=False``), ``(N, D+1, D+1)``."""
        return (self.index_normalizing.double() @ torch.linalg.inv(self.affine.double())).to(self.dtype)

    @cached_property
    def index_normalizing(self) -> MatrixTensor:
        """Matrix from index to [-1, 1] over the field of view, ``(1, D+1, D+1)``."""
        matrix = torch.eye(self.ndim + 1, dtype=torch.float64, device=self.device)
        size = self.size.double()
        matrix[range(self.ndim), range(self.ndim)] = 2 / size
        matrix[: self.ndim, self.ndim] = 1 / size - 1
        return matrix.to(self.dtype).unsqueeze(0)

    @cached_property
    def denormalizing(self) -> MatrixTensor:
        """Inverse of :attr:`normalizing`, ``(N, D+1, D+1)``."""
        return torch.linalg.inv(self.normalizing.double()).to(self.dtype)

    @cached_property
    def corners(self) -> Grid:
        """The grid of the outermost samples of this grid, two per axis."""
        affine = self.affine.clone()
        affine[:, : self.ndim, : self.ndim] *= (self.size - 1).clamp(min=1)
        return Grid((2,) * self.ndim, affine)

    @cached_property
    def points(self) -> PointTensor:
        """Positions of all samples in mm LPS, ``(N, *shape, D)``; computed once."""
        axes = [torch.arange(n, dtype=self.dtype, device=self.device) for n in self.shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
        return apply_affine(self.affine, index.expand(self.affine.shape[0], *index.shape))

    def to_index(self, points: PointTensor) -> PointTensor:
        """Convert points ``(B, *P, D)`` in mm to continuous indices ``(i, j, k)``."""
        return apply_affine(self.inverse_affine, points)

    def to_normalized(self, points: PointTensor) -> PointTensor:
        """Convert points ``(B, *P, D)`` in mm to coordinates for ``grid_sample`` (``align_corners=False``)."""
        return apply_affine(self.normalizing, points)

    def resized(self, shape: Sequence[int]) -> Grid:
        """Return the same field of view with another number of samples.

        Args:
            shape: Array order.

        Raises:
            InputError: ``shape`` has another number of axes.
        """
        if len(shape) != self.ndim:
            raise InputError(f"Grid.resized needs {self.ndim} sizes, got {tuple(shape)}.")
        factor = torch.tensor(
            [n / m for n, m in zip(reversed(self.shape), reversed(tuple(shape)), strict=True)],
            dtype=torch.float64,
            device=self.device,
        )
        affine = self.affine.double().clone()
        linear = self.affine[:, : self.ndim, : self.ndim].double()
        affine[:, : self.ndim, : self.ndim] = linear * factor
        affine[:, : self.ndim, self.ndim] += (linear @ ((factor - 1) / 2).unsqueeze(-1)).squeeze(-1)
        return Grid(tuple(shape), affine.to(self.dtype))

    def cropped(self, first: Sequence[int], shape: Sequence[int]) -> Grid:
        """Return the part of the grid that starts at an index.

        Args:
            first: Index of the first sample, array order.
            shape: Number of samples, array order.

        Raises:
            InputError: An argument has another number of axes.
        """
        if len(first) != self.ndim or len(shape) != self.ndim:
            raise InputError(f"Grid.cropped needs {self.ndim} indices and sizes, got {tuple(first)}, {tuple(shape)}.")
        start = torch.tensor(list(first)[::-1], dtype=torch.float64, device=self.device)
        affine = self.affine.double().clone()
        affine[:, : self.ndim, self.ndim] += affine[:, : self.ndim, : self.ndim] @ start
        return Grid(tuple(shape), affine.to(self.dtype))

    def rows(self, rows: slice) -> Grid:
        """Return the part of the grid with some samples of its first array axis, such as a slab of slices."""
        first, last, _ = rows.indices(self.shape[0])
        return self.cropped([first, *[0] * (self.ndim - 1)], [last - first, *self.shape[1:]])

    def with_spacing(self, spacing: float | Sequence[float]) -> Grid:
        """Return the same field of view at about ``spacing`` mm along ``(x, y, z)``.

        Each axis keeps at least one sample.
        """
        wanted = torch.as_tensor(spacing, dtype=self.dtype, device=self.device)
        return self.resized([max(1, n) for n in self._counts(wanted)])

    def coarsened(self, factor: float, *, smallest: int = 1) -> Grid:
        """Return the same field of view at ``factor`` times the finest spacing, with nearly isotropic samples.

        An axis that is already coarser than the new spacing keeps its samples.

        Args:
            factor: At least 1.
            smallest: Lowest number of samples per axis, unless the axis has fewer.
        """
        spacing = self.spacing.mean(0)
        shape = self._counts(torch.maximum(spacing, spacing.min() * factor))
        return self.resized([min(n, max(smallest, m)) for n, m in zip(self.shape, shape, strict=True)])

    def _counts(self, spacing: Tensor) -> list[int]:
        """Return the number of samples at a spacing along ``(x, y, z)``, in array order.

        A count that is whole to rounding errors, or halfway between two, is taken as exact: the spacing of an oblique
        grid is not, and a grid turned in space has to keep its shape.
        """
        exact = 2 * (self.spacing.mean(0) * self.size / spacing).double()
        whole = exact.round()
        halves = torch.where((exact - whole).abs() < 1e-3, whole, exact) / 2
        return [int(n) for n in halves.round().flip(0).tolist()]

    def to(self, *args: object, **kwargs: object) -> Grid:
        """Move or cast the coordinates, as ``torch.Tensor.to`` does."""
        affine = self.affine.to(*args, **kwargs)  # type: ignore[call-overload]
        return self if affine is self.affine else Grid(self.shape, affine)

    def matches(self, other: Grid, tolerance: float = 1e-4) -> bool:
        """Return whether both grids have the same samples: equal shape, corners within ``tolerance`` of a voxel."""
        if self is other:
            return True
        if self.shape != other.shape or self.device != other.device:
            return False
        index = torch.cat([self.size - 1, self.size.new_ones(1)])
        step = (self.affine - other.affine).abs() * index
        return bool((step.sum(-1)[:, :-1] <= tolerance * self.spacing.min()).all())

    def __repr__(self) -> str:
        spacing = ", ".join(f"{s:.4g}" for s in self.spacing[0].tolist())
        origin = ", ".join(f"{o:.4g}" for o in self.origin[0].tolist())
        return f"Grid(shape={self.shape}, spacing=({spacing}) mm, origin=({origin}) mm)"


def apply_affine(matrix: MatrixTensor, points: PointTensor) -> PointTensor:
    """Apply a homogeneous matrix to channel-last points, in float32 also under autocast.

    Args:
        matrix: ``(N, D+1, D+1)``.
        points: ``(B, *P, D)``; a batch of 1 on either side is broadcast.

    Returns:
        ``(B, *P, D)``.
    """
    ndim = matrix.shape[-1] - 1
    matrix = matrix.to(torch.promote_types(matrix.dtype, points.dtype))
    flat = points.reshape(points.shape[0], -1, ndim).to(matrix.dtype)
    with torch.autocast(points.device.type, enabled=False):
        mapped = flat @ matrix[:, :ndim, :ndim].transpose(1, 2) + matrix[:, :ndim, ndim].unsqueeze(1)
    return mapped.reshape(mapped.shape[0], *points.shape[1:])


@full_precision
def linear_map(matrix: Tensor, field: FieldTensor) -> FieldTensor:
    """Apply the linear part of a homogeneous ``(N, D+1, D+1)`` matrix to each vector of a ``(B, D, *grid)`` field."""
    ndim = field.shape[1]
    return map_vectors(matrix[:, :ndim, :ndim].to(field.dtype), field)
