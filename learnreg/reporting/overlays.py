"""What is drawn over the pictures of a figure: directions, outlines, landmarks, grids and checkerboards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from learnreg.reporting.planes import Plane, Slice

LABELS = 20  # outlines in one picture, of the largest labels
SQUARES = 8  # along the longer side of a checkerboard
MANY = 40  # of more landmarks only those near the plane are drawn


def draw_letters(ax: Axes, plane: Plane) -> None:
    """Write the patient's directions at the sides of a picture."""
    sides = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"))
    places = (*sides, (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for (x, y, horizontal, vertical), letter in zip(places, plane.letters or (), strict=False):
        style: dict[str, Any] = {"ha": horizontal, "va": vertical, "fontsize": 8, "color": "yellow"}
        style["path_effects"] = [withStroke(linewidth=2, foreground="black")]
        ax.text(x, y, letter, transform=ax.transAxes, **style)


def draw_labels(ax: Axes, labels: NDArray[Any], *, dashed: bool = False) -> None:
    """Draw the outline of each of the largest labels of a picture; a label has the same color in every picture."""
    if min(labels.shape) < 2:
        return
    values, counts = np.unique(labels[labels != 0], return_counts=True)
    colors = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for value in values[np.argsort(-counts)][:LABELS]:
        part = labels == value
        if not part.all():
            style: Any = {"linestyles": "dashed" if dashed else "solid", "linewidths": 0.9}
            ax.contour(part, levels=[0.5], colors=[colors[int(value) % len(colors)]], **style)


def draw_landmarks(axes: Sequence[Axes], plane: Plane, points: Tensor, moved: Tensor | None = None) -> None:
    """Draw landmarks as dots, with a line to where they are in the other image; faint if far from the plane.

    Args:
        axes: Pictures.
        plane: What they show.
        points: ``(K, D)``, mm; NaN where a landmark is not marked.
        moved: Landmarks of the other image, in the space of ``points``.
    """
    at, away = plane.on_page(points)
    near = np.isfinite(at).all(axis=1) & ((away <= 2) if len(at) > MANY else (away < np.inf))
    there = at if moved is None else plane.on_page(moved)[0]
    for ax in axes:
        limits = ax.get_xlim(), ax.get_ylim()
        for k in np.flatnonzero(near):
            alpha = 1.0 if away[k] <= 2 else 0.35
            if np.isfinite(there[k]).all():
                ax.plot(*np.stack([at[k], there[k]]).T, color="cyan", linewidth=0.9, alpha=alpha, zorder=4)
            ax.plot(*at[k], ".", color="tab:red", markersize=5, alpha=alpha, zorder=5)
        ax.set_xlim(limits[0])
        ax.set_ylim(limits[1])


def checkerboard(first: Slice, second: Slice, aspect: float) -> Slice:
    """Return squares of one picture and of another in turn.

    Args:
        first: ``(rows, columns)``.
        second: ``(rows, columns)``.
        aspect: Height of a sample by its width.
    """
    side = max(first.shape[0] * aspect, first.shape[1]) / SQUARES  # in widths of a sample
    rows = np.floor(np.arange(first.shape[0]) * aspect / side)
    columns = np.floor(np.arange(first.shape[1]) / side)
    return np.where((rows[:, None] + columns) % 2 == 0, first, second)


def draw_grid(ax: Axes, points: Tensor, plane: Plane) -> None:
    """Draw every few lines of the mapped plane.

    Args:
        ax: Where to draw.
        points: Where each sample of the plane lies, ``(1, *plane, D)`` mm.
        plane: The plane. If the points lie outside of it on the whole, they are centered and their shift is written.
    """
    at, _ = plane.on_page(points[0].reshape(-1, points.shape[-1]))
    shape = [n for axis, n in enumerate(plane.whole.shape) if plane.whole.ndim == 2 or axis != plane.axis]
    lattice = at.reshape(*shape, 2)
    lattice = lattice if plane.rows < plane.columns else lattice.swapaxes(0, 1)
    height, width = lattice.shape[:2]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = np.nanmean(lattice, axis=(0, 1)) - middle
    if (np.abs(shift) > middle + 0.5).any() or (np.abs(shift) > 0.35 * np.array([width, height])).any():
        lattice = lattice - shift
        spacing = plane.whole.spacing[0].flip(0).tolist()
        length = float(np.hypot(shift[0] * spacing[plane.columns], shift[1] * spacing[plane.rows]))
        ax.set_title(f"centered; shift {length:.0f} mm", fontsize=8)
    x, y = lattice[..., 0], lattice[..., 1]
    down, across = max(1, round(height / 32)), max(1, round(width / 32))
    for lines in ((x[::down].T, y[::down].T), (x[:, ::across], y[:, ::across])):
        ax.plot(*lines, color="tab:blue", linewidth=0.5)
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_aspect(plane.aspect)
