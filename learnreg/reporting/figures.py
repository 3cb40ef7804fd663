"""Figures of a registration."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from learnreg.fields import channels_first, channels_last, jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.sampling import sample
from learnreg.separable import slabs
from learnreg.transforms import Affine, Sampled, Transform
from learnreg.typing import PathLike
from learnreg.warping import warp
from learnreg.writing import write_atomically

Slice = NDArray[np.floating[Any]]
SAMPLES = 2**21  # voxels from which quantiles are taken


def registration_figure(
    fixed: Image, moving: Image, transform: Transform, *, initial: Transform | None = None, title: str = ""
) -> Figure:
    """Draw images before and after, their difference, the deformed grid and the Jacobian of the first pair of a batch.

    Args:
        fixed: The reference.
        moving: The image that was aligned.
        transform: The result.
        initial: Transform of the "before" image; ``None`` is the identity.
        title: A line above.

    Returns:
        A figure with one row per anatomical plane (3-D), or one row (2-D).
    """
    before = initial if initial is not None else Affine.identity(fixed.ndim).to(fixed.data.device)
    limits, moving_limits = _window(fixed.data), _window(moving.data)
    planes = _planes(fixed, limits)
    figure = Figure(figsize=(2.4 * 7, 2.6 * len(planes) + 0.4), layout="constrained")
    axes = figure.subplots(len(planes), 7, squeeze=False)
    for row, plane in enumerate(planes):  # only the planes are warped, windowed and compared
        with torch.no_grad():
            displacement = plane.displacement(transform)
            points = plane.grid.points + channels_last(plane.slice(displacement))
            start = warp(Image(moving.data, moving.grid), before, plane.grid).data
            warped = sample(moving.data, moving.grid, points)
            determinant = plane.slice(jacobian_determinant(displacement, plane.slab)[:, None])
        images = {
            "fixed": _shown(plane.flat(fixed.data), limits),
            "moving": _shown(plane.flat(start), moving_limits),
            "warped": _shown(plane.flat(warped), moving_limits),
        }
        images["difference before"] = images["moving"] - images["fixed"]
        images["difference after"] = images["warped"] - images["fixed"]
        lattice = channels_first(fixed.grid.to_index(points))  # in voxels of the fixed grid
        across = plane.flat(lattice).movedim(0, -1).cpu()
        _row(axes[row], images, plane.flat(determinant)[0].cpu().numpy(), across, plane)
    for column, name in enumerate([*images, "deformed grid", "Jacobian"]):
        axes[0][column].set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def template_figure(template: Image, *, title: str = "") -> Figure:
    """Draw a template in each anatomical plane, with its labels below if it has any."""
    limits = _window(template.data)
    planes = _planes(template, limits)
    rows = 1 if template.labels is None else 2
    figure = Figure(figsize=(3.2 * len(planes), 3.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(planes), squeeze=False)
    for column, plane in enumerate(planes):
        pictures = [(_shown(plane.flat(template.data), limits), "gray")]
        if template.labels is not None:
            pictures.append((plane.flat(template.labels)[0].cpu().numpy().astype(np.float32), "nipy_spectral"))
        for row, (picture, colors) in enumerate(pictures):
            axes[row][column].imshow(plane.turned(picture), cmap=colors, aspect=plane.aspect, interpolation="nearest")
            axes[row][column].set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: PathLike, *, dpi: int = 100) -> None:
    """Write a figure; the file appears only when it is complete."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: figure.savefig(part, dpi=dpi))


def figure_html(figure: Figure, caption: str, *, dpi: int = 70) -> str:
    """Return a figure with a caption as HTML that needs no other file."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi)
    picture = base64.b64encode(file.getvalue()).decode()
    return f'<p>{html.escape(caption)}</p><img src="data:image/png;base64,{picture}">'


def _planes(image: Image, limits: tuple[float, float]) -> list[_Plane]:
    """Return the planes to draw, through the middle of what is bright.

    They are all three of a volume, that of the single sample of a slice, or a 2-D image itself.
    """
    single = [axis for axis, n in enumerate(image.grid.shape) if n == 1]
    axes = [0] if image.ndim == 2 else single or [0, 1, 2]
    profiles = _profiles(image.data, limits)
    return [_Plane.through(axis, _middle(profiles[axis]), image.grid) for axis in axes]


def _window(data: Tensor) -> tuple[float, float]:
    """Return two quantiles of the first image; of a large one, of every few samples along each axis."""
    step = max(1, round((data[0, 0].numel() / SAMPLES) ** (1 / (data.ndim - 2))))
    values = data[0, 0].detach()[(slice(None, None, step),) * (data.ndim - 2)].float().cpu().numpy()
    low, high = np.quantile(values, [0.01, 0.995])
    return float(low), float(high if high > low else low + 1)


def _shown(plane: Tensor, limits: tuple[float, float]) -> Slice:
    """Return ``(C, rows, columns)`` intensities as brightness in [0, 1]; the first channel."""
    low, high = limits
    shown: Slice = np.clip((plane[0].detach().float().cpu().numpy() - low) / (high - low), 0, 1).astype(np.float32)
    return shown


def _profiles(data: Tensor, limits: tuple[float, float]) -> list[Slice]:
    """Return the sum of the brightness of each slice, per array axis."""
    shape = data.shape[2:]
    profiles: list[Slice] = [np.zeros(n) for n in shape]
    for part in slabs(shape, 1, data.device):
        shown = _shown(data[0, :, part], limits)
        for axis, profile in enumerate(profiles):
            total = shown.sum(axis=tuple(a for a in range(shown.ndim) if a != axis), dtype=np.float64)
            profile[part if axis == 0 else slice(None)] += total
    return profiles


def _row(
    axes: NDArray[np.object_], images: dict[str, Slice], determinant: Slice, lattice: Tensor, plane: _Plane
) -> None:
    """Draw one plane: the images, their differences, the grid and the determinant."""
    ndim = lattice.shape[-1]
    for ax, (name, image) in zip(axes, images.items(), strict=False):
        signed = name.startswith("difference")
        colors = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if signed else {"cmap": "gray", "vmin": 0, "vmax": 1}
        ax.imshow(plane.turned(image), aspect=plane.aspect, **colors)
    lattice = lattice if plane.rows < plane.columns else lattice.transpose(0, 1)
    across = lattice[..., [ndim - 1 - plane.columns, ndim - 1 - plane.rows]]
    _draw_grid(axes[5], across.numpy(), plane.aspect, plane.flips)
    shown = axes[6].imshow(plane.turned(determinant), cmap="PuOr", vmin=0, vmax=2, aspect=plane.aspect)
    axes[6].figure.colorbar(shown, ax=axes[6], fraction=0.046)
    for ax in axes:
        ax.set_axis_off()


@dataclass(frozen=True)
class _Plane:
    """A plane across one array axis; ``whole`` is the grid that it is a part of."""

    whole: Grid
    axis: int
    middle: int
    rows: int
    columns: int
    aspect: float
    flips: tuple[bool, bool]

    @staticmethod
    def through(axis: int, middle: int, grid: Grid) -> _Plane:
        spacing = grid.spacing[0].flip(0).tolist()
        rows, columns = _upright([a for a in range(grid.ndim) if grid.ndim == 2 or a != axis], grid)
        flips = _is_reversed(grid, rows), _is_reversed(grid, columns)
        return _Plane(grid, axis, middle, rows, columns, spacing[rows] / spacing[columns], flips)

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

    def turned(self, picture: Slice) -> Slice:
        """Turn a picture upright."""
        picture = picture if self.rows < self.columns else picture.T
        return picture[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


def _middle(profile: Slice) -> int:
    """Return the slice through the middle of the bright voxels."""
    total = float(profile.sum())
    if total <= 0:
        return len(profile) // 2
    return int(np.clip(round(float((profile * np.arange(len(profile))).sum()) / total), 0, len(profile) - 1))


def _upright(axes: list[int], grid: Grid) -> list[int]:
    """Return the two array axes of a plane.

    The axis closer to the head (or the front) comes first and runs down the page.
    """
    if grid.ndim == 2:
        return axes
    return sorted(axes, key=lambda a: -_main_axis(grid, a))


def _main_axis(grid: Grid, array_axis: int) -> int:
    """Return which of x, y, z an array axis is closest to."""
    return int(grid.direction[0, :, grid.ndim - 1 - array_axis].abs().argmax())


def _is_reversed(grid: Grid, array_axis: int) -> bool:
    """Return whether to mirror an axis so that superior and anterior are up and the patient's left is right."""
    if grid.ndim == 2:
        return False
    main = _main_axis(grid, array_axis)
    return bool((grid.direction[0, main, grid.ndim - 1 - array_axis] > 0) == (main == 2))


def _draw_grid(ax: Axes, lattice: Slice, aspect: float, flips: tuple[bool, bool]) -> None:
    """Draw every few lines of the mapped lattice ``(rows, columns, 2)``, ``(x, y)`` in voxels of the fixed grid."""
    x, y = lattice[..., 0], lattice[..., 1]
    height, width = x.shape
    down, across = max(1, round(height / 32)), max(1, round(width / 32))
    for lines in ((x[::down].T, y[::down].T), (x[:, ::across], y[:, ::across])):
        ax.plot(*lines, color="tab:blue", linewidth=0.5)
    horizontal, vertical = (-0.5, width - 0.5), (height - 0.5, -0.5)
    ax.set_xlim(horizontal[::-1] if flips[1] else horizontal)
    ax.set_ylim(vertical[::-1] if flips[0] else vertical)
    ax.set_aspect(aspect)
