"""Figures of a registration."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from learnreg.fields import channels_last, jacobian_determinant
from learnreg.image import Image
from learnreg.optimization import LevelHistory
from learnreg.reporting.overlays import (
    checkerboard,
    draw_grid,
    draw_labels,
    draw_landmarks,
    draw_letters,
)
from learnreg.reporting.planes import Plane, Slice, planes_of, shown, window
from learnreg.sampling import sample, sample_labels
from learnreg.transforms import Affine, Transform
from learnreg.typing import PathLike
from learnreg.warping import warp
from learnreg.writing import write_atomically

COLUMNS = 7
APART = (
    0.02  # share of the fixed field of view that lies in the moving one, below which centers are aligned to show both
)


def registration_figure(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    initial: Transform | None = None,
    title: str = "",
    names: tuple[str, str] = ("fixed", "moving"),
    same_contrast: bool = True,
) -> Figure:
    """Draw images before and after, their difference, the deformed grid and the Jacobian of the first pair of a batch.

    Planes are shown as a radiologist sees them, with the patient's directions and the position in mm. Labels are drawn
    as outlines: solid for the fixed image, dashed for the moving one. Landmarks are dots with a line to where the
    transform puts the landmark of the moving image.

    Args:
        fixed: The reference.
        moving: The image that was aligned.
        transform: The result.
        initial: Transform of the "before" image; ``None`` is the identity, or aligned centers if the two images would
            not overlap at all.
        title: A line above.
        names: Names of the two images.
        same_contrast: Show differences; ``False`` shows checkerboards instead, for images of different contrasts.

    Returns:
        A figure with one row per anatomical plane (3-D: axial, coronal, sagittal), or one row (2-D).

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> len(registration_figure(image, image, learnreg.Affine.identity(2)).axes)
        8
    """
    before, how = starting_point(fixed, moving, initial)
    pair = _Pair(fixed, moving, transform, before, window(fixed.data), window(moving.data), same_contrast)
    planes = planes_of(fixed, pair.limits)
    sizes = [min(2.0, max(0.35, plane.size[0] / max(plane.size[1], 1e-6))) for plane in planes]
    figure = Figure(figsize=(2.4 * COLUMNS, sum(2.4 * size for size in sizes) + 0.9), layout="constrained")
    axes = figure.subplots(len(planes), COLUMNS, squeeze=False, height_ratios=sizes)
    for row, plane in zip(axes, planes, strict=True):  # only the planes are warped, windowed and compared
        pair.draw(list(row), plane)
    compared = "difference" if same_contrast else "checkerboard"
    spacings = (" x ".join(f"{s:.3g}" for s in image.grid.spacing[0].tolist()) for image in (fixed, moving))
    heads = [f"{_short(name)}\n{spacing} mm" for name, spacing in zip(names, spacings, strict=True)]
    heads[1] += how
    columns = [*heads, "warped\nmoving on fixed", f"{compared}\nbefore", f"{compared}\nafter"]
    for ax, name in zip(
        axes[0], [*columns, "deformed grid", "Jacobian determinant\n(volume, 1: unchanged)"], strict=True
    ):
        previous = ax.get_title()
        ax.set_title(f"{name}\n{previous}" if previous else name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def starting_point(fixed: Image, moving: Image, initial: Transform | None = None) -> tuple[Transform, str]:
    r"""Return the transform of the image "before", and a line that says what it is.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> far = learnreg.Image(image.data, learnreg.Grid.regular((8, 8), origin=(100.0, 0.0)))
        >>> starting_point(image, image)[1], starting_point(image, far)[1]
        ('', '\nshown with centers aligned')
    """
    identity = Affine.identity(fixed.ndim).to(fixed.data.device, fixed.grid.dtype)
    if initial is not None:
        return initial, "\nafter the initial alignment"
    grid = fixed.grid.coarsened(max(1.0, max(fixed.grid.shape) / 16))
    inside = (moving.grid.to_normalized(grid.points.to(moving.grid.affine))[:1].abs() <= 1).all(dim=-1)
    if float(inside.float().mean()) >= APART:
        return identity, ""
    shift = (moving.grid.center[0].to(fixed.grid.affine) - fixed.grid.center[0]).to(fixed.grid.affine)
    return Affine.translation(shift), "\nshown with centers aligned"


@dataclass(frozen=True)
class _Pair:
    """What is drawn in each plane."""

    fixed: Image
    moving: Image
    transform: Transform
    before: Transform
    limits: tuple[float, float]
    moving_limits: tuple[float, float]
    same_contrast: bool

    @torch.no_grad()
    def draw(self, axes: Sequence[Axes], plane: Plane) -> None:
        """Draw a row of pictures."""
        displacement = plane.displacement(self.transform)
        points = plane.grid.points + channels_last(plane.slice(displacement))
        determinant = plane.slice(jacobian_determinant(displacement, plane.slab)[:, None])
        start = warp(Image(self.moving.data, self.moving.grid), self.before, plane.grid).data
        fixed = shown(plane.flat(self.fixed.data), self.limits)
        moving = shown(plane.flat(start), self.moving_limits)
        warped = shown(plane.flat(sample(self.moving.data, self.moving.grid, points)), self.moving_limits)
        gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
        for ax, picture in zip(axes, (fixed, moving, warped), strict=False):
            ax.imshow(plane.turned(picture), aspect=plane.aspect, **gray)
            draw_letters(ax, plane)
        for ax, picture in zip(axes[3:], (moving, warped), strict=False):
            if self.same_contrast:
                ax.imshow(plane.turned(picture - fixed), aspect=plane.aspect, cmap="RdBu_r", vmin=-1, vmax=1)
            else:
                board = checkerboard(plane.turned(fixed), plane.turned(picture), plane.aspect)
                ax.imshow(board, aspect=plane.aspect, **gray)
        draw_grid(axes[5], self._relative(plane, points), plane)
        _draw_jacobian(axes[6], plane.turned(plane.flat(determinant)[0].cpu().numpy()), plane.turned(fixed), plane)
        self._draw_labels(axes, plane, points)
        self._draw_landmarks(axes, plane)
        for ax in axes:
            ax.set_xticks([])
            ax.set_yticks([])
            for side in ax.spines.values():
                side.set_visible(False)
        axes[0].set_ylabel(plane.label, fontsize=9)

    def _relative(self, plane: Plane, points: Tensor) -> Tensor:
        """Return the mapped plane without the initial alignment, which would move it out of the picture."""
        if isinstance(self.before, Affine):
            return self.before.inverse().to(points)(points)
        return points

    def _draw_labels(self, axes: Sequence[Axes], plane: Plane, points: Tensor) -> None:
        fixed, moving = self.fixed.labels, self.moving.labels
        reference = None if fixed is None else plane.turned(plane.flat(fixed)[0].cpu().numpy())
        if reference is not None:
            for ax in axes[:3]:
                draw_labels(ax, reference)
        if moving is None:
            return
        start = self.before.to(points)(plane.grid.points)
        for columns, where in (((1, 3), start), ((2, 4), points)):
            found = sample_labels(moving, self.moving.grid, where.to(self.moving.grid.affine))
            outline = plane.turned(plane.flat(found)[0].cpu().numpy())
            for column in columns if reference is None else columns[:1]:
                draw_labels(axes[column], outline, dashed=True)

    def _draw_landmarks(self, axes: Sequence[Axes], plane: Plane) -> None:
        fixed, moving = self.fixed.landmarks, self.moving.landmarks
        if fixed is None:
            return
        draw_landmarks([axes[0]], plane, fixed[0])
        if moving is None or moving.shape != fixed.shape:
            return
        for columns, transform in (((1, 3), self.before), ((2, 4), self.transform)):
            back = transform.inverse().to(moving.device)(moving[:1])[0]
            draw_landmarks([axes[c] for c in columns], plane, fixed[0], back.to(fixed))


def _draw_jacobian(ax: Axes, determinant: Slice, below: Slice, plane: Plane) -> None:
    """Draw the determinant over the fixed image, and folds in red."""
    drawn = ax.imshow(determinant, cmap="PuOr", vmin=0, vmax=2, aspect=plane.aspect, alpha=0.7, zorder=2)
    ax.imshow(below, cmap="gray", vmin=0, vmax=1, aspect=plane.aspect, zorder=1)
    folds = determinant <= 0
    if folds.any() and min(folds.shape) > 1 and not folds.all():
        ax.contour(folds, levels=[0.5], colors="red", linewidths=1, zorder=3)
    ax.figure.colorbar(drawn, ax=ax, fraction=0.046)


def objective_figure(history: Sequence[LevelHistory]) -> Figure:
    """Draw the objective at each iteration, one picture per stage, one line per level.

    Args:
        history: Losses of the levels, in the order they were run; see ``Registration.history``.

    Example:
        >>> history = [LevelHistory("FieldStage", (8, 8), (0.5, 0.3)), LevelHistory("FieldStage", (16, 16), (0.2, 0.1))]
        >>> len(objective_figure(history).axes)
        1
    """
    stages: list[list[LevelHistory]] = []
    for level in history:
        if level.losses and stages and stages[-1][-1].stage == level.stage and _is_finer(stages[-1][-1], level):
            stages[-1].append(level)
        elif level.losses:
            stages.append([level])
    figure = Figure(figsize=(min(14.0, 3.6 * max(1, len(stages))), 2.6), layout="constrained")
    for ax, levels in zip(figure.subplots(1, max(1, len(stages)), squeeze=False)[0], stages, strict=False):
        first = 0
        for level in levels:
            size = " x ".join(map(str, level.shape[::-1]))
            marker = "." if len(level.losses) < 3 else None
            ax.plot(range(first, first + len(level.losses)), level.losses, label=size, marker=marker)
            first += len(level.losses)
        ax.set_title(levels[0].stage, fontsize=9)
        ax.set_xlabel("evaluation of the objective", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.legend(fontsize=7, title="voxels", title_fontsize=7)
    return figure


def _is_finer(last: LevelHistory, level: LevelHistory) -> bool:
    return bool(np.prod(level.shape) >= np.prod(last.shape))


def template_figure(template: Image, *, title: str = "") -> Figure:
    """Draw a template in each anatomical plane, with its labels below if it has any."""
    limits = window(template.data)
    planes = planes_of(template, limits)
    rows = 1 if template.labels is None else 2
    figure = Figure(figsize=(3.2 * len(planes), 3.2 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, len(planes), squeeze=False)
    for column, plane in enumerate(planes):
        pictures = [(shown(plane.flat(template.data), limits), "gray")]
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


def _short(name: str, length: int = 26) -> str:
    """Shorten a name in its middle; ``$`` starts no formula."""
    half = length // 2 - 1
    return (name if len(name) <= length else f"{name[:half]}...{name[-half:]}").replace("$", r"\$")
