"""Planes of an image as a radiologist sees them: upright, the patient's right on the left of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.separable import slabs
from learnreg.transforms import Sampled, Transform

Slice = NDArray[np.floating[Any]]
SAMPLES = 2**21  # voxels from which quantiles are taken
NAMES = ("sagittal", "coronal", "axial")  # of the planes across x, y, z
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # toward lower and higher x, y, z in LPS


@dataclass(frozen=True)
class Plane:
    r"""A plane across one array axis.

    Args:
        whole: The grid that it is a part of.
        axis: Array axis across the plane; 0 for a 2-D grid.
        middle: Index of the plane along it.
        rows: Array axis that runs down the page.
        columns: Array axis that runs across the page.
        aspect: Spacing of the rows by that of the columns.
        flips: Whether rows and columns are mirrored.

    Example:
        >>> plane = Plane.through(0, 3, learnreg.Grid.regular((8, 8, 8), 2.0))
        >>> plane.name, plane.letters, plane.label
        ('axial', ('R', 'L', 'A', 'P'), 'axial\nz = -1.0 mm')
    """

    whole: Grid
    axis: int
    middle: int
    rows: int
    columns: int
    aspect: float
    flips: tuple[bool, bool]

    @staticmethod
    def through(axis: int, middle: int, grid: Grid) -> Plane:
        """Return a plane across an array axis of a grid, upright."""
        spacing = grid.spacing[0].flip(0).tolist()
        axes = [a for a in range(grid.ndim) if grid.ndim == 2 or a != axis]
        mains = main_axes(grid)
        # the axis closer to the head, or to the front, comes first and runs down the page
        rows, columns = axes if grid.ndim == 2 else sorted(axes, key=lambda a: -mains[a])
        flips = _is_mirrored(grid, rows), _is_mirrored(grid, columns)
        return Plane(grid, axis, middle, rows, columns, spacing[rows] / spacing[columns], flips)

    @property
    def name(self) -> str:
        """The anatomical plane that is closest; empty for a 2-D image."""
        return "" if self.whole.ndim == 2 else NAMES[main_axes(self.whole)[self.axis]]

    @property
    def label(self) -> str:
        """Name and position of the plane: the coordinate in mm LPS of its center."""
        if self.whole.ndim == 2:
            return ""
        main = main_axes(self.whole)[self.axis]
        return f"{self.name}\n{'xyz'[main]} = {float(self.grid.center[0, main]):.1f} mm"

    @property
    def letters(self) -> tuple[str, str, str, str] | None:
        """Directions of the patient at the left, right, top and bottom of the page; ``None`` for a 2-D image."""
        if self.whole.ndim == 2:
            return None
        ends = []
        for axis, mirrored in ((self.columns, self.flips[1]), (self.rows, self.flips[0])):
            low, high = LETTERS[main_axes(self.whole)[axis]]
            ends += [high, low] if _points_up(self.whole, axis) == mirrored else [low, high]
        return ends[0], ends[1], ends[2], ends[3]

    @property
    def size(self) -> tuple[float, float]:
        """Height and width on the page, mm."""
        extent = self.whole.extent[0].flip(0).tolist()
        return extent[self.rows], extent[self.columns]

    @property
    def grid(self) -> Grid:
        """The samples of the plane."""
        return self._cropped(self.middle, self.middle + 1)

    @property
    def slab(self) -> Grid:
        """The plane and its two neighbors, from which differences are taken."""
        return self._cropped(*self._ends)

    @property
    def _ends(self) -> tuple[int, int]:
        return max(self.middle - 1, 0), min(self.middle + 2, self.whole.shape[self.axis])

    def _cropped(self, low: int, high: int) -> Grid:
        if self.whole.ndim == 2:
            return self.whole
        first, shape = [0] * self.whole.ndim, list(self.whole.shape)
        first[self.axis], shape[self.axis] = low, high - low
        return self.whole.cropped(first, shape)

    def displacement(self, transform: Transform) -> Tensor:
        """Return the displacement on :attr:`slab`; a field that was sampled on the whole grid is not computed again."""
        if isinstance(transform, Sampled) and transform.grid.matches(self.whole):
            low, high = self._ends
            return transform.field if self.whole.ndim == 2 else transform.field.narrow(self.axis + 2, low, high - low)
        return transform.displacement(self.slab)

    def slice(self, values: Tensor) -> Tensor:
        """Return the plane of values on :attr:`slab`, on :attr:`grid`."""
        if self.whole.ndim == 2:
            return values
        return values.narrow(self.axis + 2, self.middle - self._ends[0], 1)

    def flat(self, values: Tensor) -> Tensor:
        """Return the plane of the first image, ``(C, rows, columns)``; values lie on the whole grid or on the plane."""
        if self.whole.ndim == 2:
            return values[0]
        single = values.shape[self.axis + 2] == 1
        return values[0].select(self.axis + 1, 0 if single else self.middle)

    def turned(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Turn a picture upright."""
        picture = picture if self.rows < self.columns else picture.T
        return picture[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def on_page(self, points: Tensor) -> tuple[Slice, Slice]:
        """Return where points ``(K, D)`` in mm lie.

        Returns:
            Columns and rows of the turned picture ``(K, 2)``, and the distance to the plane in slices ``(K,)``.
        """
        index = self.whole.to_index(points[None].to(self.whole.affine))[0].detach().cpu().double().numpy()[:, ::-1]
        at = index[:, [self.columns, self.rows]].copy()
        for k, (axis, mirrored) in enumerate(((self.columns, self.flips[1]), (self.rows, self.flips[0]))):
            at[:, k] = self.whole.shape[axis] - 1 - at[:, k] if mirrored else at[:, k]
        away = np.zeros(len(at)) if self.whole.ndim == 2 else np.abs(index[:, self.axis] - self.middle)
        return at, away


def planes_of(image: Image, limits: tuple[float, float]) -> list[Plane]:
    """Return the planes to draw, through the middle of the labels, or of what is bright: axial, coronal, sagittal.

    They are all three of a volume, that of the single sample of a slice, or a 2-D image itself.
    """
    single = [axis for axis, n in enumerate(image.grid.shape) if n == 1]
    axes = [0] if image.ndim == 2 else single or [0, 1, 2]
    if image.labels is not None and bool((image.labels[0] != 0).any()):
        profiles = _profiles((image.labels != 0).float(), (0.0, 1.0))
    else:
        profiles = _profiles(image.data, limits)
    planes = [Plane.through(axis, _middle(profiles[axis]), image.grid) for axis in axes]
    mains = main_axes(image.grid)
    return sorted(planes, key=lambda plane: -mains[plane.axis])


def main_axes(grid: Grid) -> list[int]:
    """Return which of x, y, z each array axis is closest to; no two have the same.

    Example:
        >>> main_axes(learnreg.Grid.regular((8, 8, 8)))
        [2, 1, 0]
    """
    cosines = grid.direction[0].detach().abs().cpu().double()
    columns = range(grid.ndim)
    rows = max(permutations(columns), key=lambda rows: float(cosines[list(rows), list(columns)].sum()))
    return list(rows[::-1])


def _points_up(grid: Grid, axis: int) -> bool:
    """Return whether the coordinate that an array axis is closest to grows along it."""
    return bool(grid.direction[0, main_axes(grid)[axis], grid.ndim - 1 - axis] > 0)


def _is_mirrored(grid: Grid, axis: int) -> bool:
    """Return whether to mirror an axis so that superior and anterior are up and the patient's left is right."""
    return grid.ndim == 3 and _points_up(grid, axis) == (main_axes(grid)[axis] == 2)


def window(data: Tensor) -> tuple[float, float]:
    """Return two quantiles of the first image; of a large one, of every few samples along each axis."""
    step = max(1, round((data[0, 0].numel() / SAMPLES) ** (1 / (data.ndim - 2))))
    values = data[0, 0].detach()[(slice(None, None, step),) * (data.ndim - 2)].float().cpu().numpy()
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.01, 0.995]) if values.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def shown(plane: Tensor, limits: tuple[float, float]) -> Slice:
    """Return ``(C, rows, columns)`` intensities as brightness in [0, 1]; the first channel."""
    low, high = limits
    values = torch.nan_to_num(plane[0].detach().float(), nan=low).cpu().numpy()
    brightness: Slice = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    return brightness


def _profiles(data: Tensor, limits: tuple[float, float]) -> list[Slice]:
    """Return the sum of the brightness of each slice, per array axis."""
    shape = data.shape[2:]
    profiles: list[Slice] = [np.zeros(n) for n in shape]
    for part in slabs(shape, 1, data.device):
        bright = shown(data[0, :, part], limits)
        for axis, profile in enumerate(profiles):
            total = bright.sum(axis=tuple(a for a in range(bright.ndim) if a != axis), dtype=np.float64)
            profile[part if axis == 0 else slice(None)] += total
    return profiles


def _middle(profile: Sequence[float] | Slice) -> int:
    """Return the slice through the middle of the bright voxels."""
    values = np.asarray(profile)
    total = float(values.sum())
    if total <= 0:
        return len(values) // 2
    return int(np.clip(round(float((values * np.arange(len(values))).sum()) / total), 0, len(values) - 1))
