"""Figures of a registration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from learnreg.fields import channels_first, jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import write_atomically
from learnreg.sampling import sample_image
from learnreg.transforms import Affine, Transform
from learnreg.typing import PathLike
from learnreg.warping import warp

Slice = NDArray[np.floating[Any]]


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
    grid = fixed.grid
    before = initial if initial is not None else Affine.identity(fixed.ndim).to(fixed.data.device)
    with torch.no_grad():
        points = transform.map_grid(grid)
        displacement = channels_first(points - grid.points)
        start = warp(moving, before, grid).data
        warped = sample_image(moving, points, grid).data
        determinant = jacobian_determinant(displacement, grid)[:, None]
    window = _window(fixed.data)
    volumes = {
        "fixed": (fixed.data, window),
        "moving": (start, _window(moving.data)),
        "warped": (warped, _window(moving.data)),
    }
    bright = _shown(fixed.data, window)
    planes = {axis: _Plane.through(bright, axis, grid) for axis in _planes(fixed)}
    figure = Figure(figsize=(2.4 * 7, 2.6 * len(planes) + 0.4), layout="constrained")
    axes = figure.subplots(len(planes), 7, squeeze=False)
    for row, (axis, plane) in enumerate(planes.items()):  # only the planes are windowed, compared and mapped
        images = {name: _shown(plane.slice(values), limits) for name, (values, limits) in volumes.items()}
        images["difference before"] = images["moving"] - images["fixed"]
        images["difference after"] = images["warped"] - images["fixed"]
        at = points if grid.ndim == 2 else points.narrow(axis + 1, plane.middle, 1)
        index = grid.to_index(at)[0].cpu()  # the mapped lattice, in voxels of the fixed grid
        index = index if grid.ndim == 2 else index.squeeze(axis)
        _row(axes[row], images, plane.slice(determinant)[0, 0].cpu().numpy(), index, plane)
    for column, name in enumerate([*images, "deformed grid", "Jacobian"]):
        axes[0][column].set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def template_figure(template: Image, *, title: str = "") -> Figure:
    """Draw a template in each anatomical plane, with its labels below if it has any."""
    window, planes = _window(template.data), _planes(template)
    volumes = [_shown(template.data, window)]
    if template.labels is not None:
        volumes.append(template.labels[0, 0].cpu().numpy().astype(np.float32))
    figure = Figure(figsize=(3.2 * len(planes), 3.2 * len(volumes) + 0.4), layout="constrained")
    axes = figure.subplots(len(volumes), len(planes), squeeze=False)
    for row, (volume, colors) in enumerate(zip(volumes, ("gray", "nipy_spectral"), strict=False)):
        for column, axis in enumerate(planes):
            plane = _Plane.through(volumes[0], axis, template.grid)
            axes[row][column].imshow(plane.cut(volume), cmap=colors, aspect=plane.aspect, interpolation="nearest")
            axes[row][column].set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: PathLike, *, dpi: int = 100) -> None:
    """Write a figure; the file appears only when it is complete."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: figure.savefig(part, dpi=dpi))


def _planes(image: Image) -> list[int]:
    """Return the array axes to cut across: all three of a volume, that of its single sample of a slice."""
    if image.ndim == 2:
        return [0]
    single = [axis for axis, n in enumerate(image.grid.shape) if n == 1]
    return single or [0, 1, 2]


def _window(data: Tensor) -> tuple[float, float]:
    values = data[0, 0].detach().float().cpu().numpy()
    low, high = np.quantile(values, [0.01, 0.995])
    return float(low), float(high if high > low else low + 1)


def _shown(data: Tensor, window: tuple[float, float]) -> Slice:
    low, high = window
    shown: Slice = np.clip((data[0, 0].detach().float().cpu().numpy() - low) / (high - low), 0, 1).astype(np.float32)
    return shown


def _row(
    axes: NDArray[np.object_], images: dict[str, Slice], determinant: Slice, lattice: Tensor, plane: _Plane
) -> None:
    """Draw one plane: the images, their differences, the grid and the determinant."""
    ndim = lattice.shape[-1]
    for ax, (name, image) in zip(axes, images.items(), strict=False):
        signed = name.startswith("difference")
        colors = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if signed else {"cmap": "gray", "vmin": 0, "vmax": 1}
        ax.imshow(plane.cut(image), aspect=plane.aspect, **colors)
    lattice = lattice if plane.rows < plane.columns else lattice.transpose(0, 1)
    across = lattice[..., [ndim - 1 - plane.columns, ndim - 1 - plane.rows]]
    _draw_grid(axes[5], across.numpy(), plane.aspect, plane.flips)
    shown = axes[6].imshow(plane.cut(determinant), cmap="PuOr", vmin=0, vmax=2, aspect=plane.aspect)
    axes[6].figure.colorbar(shown, ax=axes[6], fraction=0.046)
    for ax in axes:
        ax.set_axis_off()


@dataclass(frozen=True)
class _Plane:
    """A cut across one array axis, turned upright."""

    axis: int
    middle: int
    rows: int
    columns: int
    aspect: float
    flips: tuple[bool, bool]

    @staticmethod
    def through(volume: Slice, axis: int, grid: Grid) -> _Plane:
        """Through the middle of what is bright."""
        spacing = grid.spacing[0].flip(0).tolist()
        rows, columns = _upright([a for a in range(grid.ndim) if grid.ndim == 2 or a != axis], grid)
        flips = _is_reversed(grid, rows), _is_reversed(grid, columns)
        return _Plane(axis, _middle(volume, axis), rows, columns, spacing[rows] / spacing[columns], flips)

    def slice(self, values: Tensor) -> Tensor:
        """Return the plane of ``(B, C, *grid)``, as ``(B, C, rows, columns)``."""
        return values if values.ndim == 4 else values.select(self.axis + 2, self.middle)

    def cut(self, volume: Slice) -> Slice:
        plane: Slice = volume if volume.ndim == 2 else np.moveaxis(volume, self.axis, 0)[self.middle]
        plane = plane if self.rows < self.columns else plane.T
        return plane[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]


def _middle(volume: Slice, axis: int) -> int:
    """Return the slice through the middle of the bright voxels."""
    profile = volume.sum(axis=tuple(a for a in range(volume.ndim) if a != axis))
    total = float(profile.sum())
    if total <= 0:
        return volume.shape[axis] // 2
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
