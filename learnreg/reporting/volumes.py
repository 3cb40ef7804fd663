"""What a report shows of a registration, small enough to be part of a page."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.reporting.figures import starting_point
from learnreg.reporting.planes import LETTERS, NAMES, main_axes, shown, window
from learnreg.transforms import Affine, Transform
from learnreg.warping import warp

if TYPE_CHECKING:
    from learnreg.methods import Registration

Bytes = NDArray[np.uint8]
VOXELS = 1_500_000  # of a volume, at most
LINES = 40  # of the deformed grid along the longest axis
STEPS = 64  # of the deformed grid in a voxel
LANDMARKS = 300


@dataclass(frozen=True, eq=False)
class Views:
    """Volumes of one registration on one grid, whose axes point to the patient's left, back and head.

    Args:
        grid: Where the volumes lie.
        volumes: Brightness, determinants and labels as bytes, ``(z, y, x)`` or ``(y, x)``.
        lattice: Displacement of every few voxels, in 1/64 voxel, ``(*lattice, D)``, and the number of voxels between.
        landmarks: Of the fixed image, of the moving image before, and after; voxels, ``(K, D)``; or none.
        start: What the image "before" is.
    """

    grid: Grid
    volumes: dict[str, Bytes]
    lattice: tuple[NDArray[np.int16], int]
    landmarks: dict[str, list[list[float | None]]]
    start: str

    def encoded(self) -> dict[str, Any]:
        """Return what the page needs, as plain values; arrays are compressed, base64."""
        grid, ndim = self.grid, self.grid.ndim
        affine = grid.affine[0].detach().cpu().double().numpy()
        centers = [(n - 1) / 2 for n in grid.shape[::-1]]
        first = [float(affine[k, :ndim] @ _replaced(centers, k, 0.0) + affine[k, ndim]) for k in range(ndim)]
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        return {
            "shape": list(grid.shape[::-1]),
            "spacing": grid.spacing[0].tolist(),
            "first": first,
            "step": [float(affine[k, k]) for k in range(ndim)],
            "planes": list(NAMES) if ndim == 3 else ["", "", "image"],
            "letters": [list(pair) for pair in LETTERS] if ndim == 3 else [],
            "ras": (flip @ affine).tolist() if ndim == 3 else [],
            "volumes": {name: packed(volume) for name, volume in self.volumes.items()},
            "lattice": {
                "shape": list(self.lattice[0].shape[:-1][::-1]),
                "step": self.lattice[1],
                "unit": STEPS,
                "data": packed(self.lattice[0]),
            },
            "landmarks": self.landmarks,
            "start": self.start,
        }

    @property
    def size(self) -> int:
        """Bytes of the encoded volumes."""
        return sum(len(packed(volume)) for volume in self.volumes.values()) + len(packed(self.lattice[0]))


def packed(array: NDArray[Any]) -> str:
    """Return an array's bytes, compressed, as text."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode()


def views(result: Registration, *, largest: int) -> Views:
    """Compute what a report shows.

    Args:
        result: The registration.
        largest: Bytes that the encoded volumes may take; they are made coarser until they fit.
    """
    voxels = VOXELS
    found = _views(result, voxels)
    while (size := found.size) > largest and voxels > 1000:
        voxels = round(min(voxels, found.volumes["fixed"].size) * 0.9 * largest / size)
        found = _views(result, voxels)
    return found


def upright(grid: Grid, voxels: int = VOXELS) -> Grid:
    """Return a grid of the same field of view whose axes point to the patient's left, back and head; 2-D stays.

    Args:
        grid: Any grid; of a batch, the first one.
        voxels: The result has about that many at most, of nearly equal size.

    Example:
        >>> flipped = learnreg.Grid.regular((8, 9, 10), direction=[[-1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])
        >>> upright(flipped).direction[0].diagonal()
        tensor([1., 1., 1.])
    """
    ndim, affine, shape = grid.ndim, grid.affine[:1].double().clone(), grid.shape
    if ndim == 3:
        axis_of = {main: axis for axis, main in enumerate(main_axes(grid))}
        columns, origin = [], affine[0, :ndim, ndim].clone()
        for main in range(ndim):
            column = affine[0, :ndim, ndim - 1 - axis_of[main]]
            if column[main] < 0:
                origin += column * (grid.shape[axis_of[main]] - 1)
                column = -column
            columns.append(column)
        shape = tuple(grid.shape[axis_of[main]] for main in reversed(range(ndim)))
        affine[0, :ndim, :ndim], affine[0, :ndim, ndim] = torch.stack(columns, dim=1), origin
    found = Grid(shape, affine.to(grid.dtype))
    spacing, finest = found.spacing[0], float(found.spacing.min())
    result = found
    while torch.tensor(result.shape).prod() > voxels:
        finest *= 1.03
        result = found.with_spacing(torch.maximum(spacing, torch.full_like(spacing, finest)).tolist())
    return result


@torch.no_grad()
def _views(result: Registration, voxels: int) -> Views:
    fixed, moving = _first(result.fixed), _first(result.moving)
    transform = result.sampled
    grid = upright(fixed.grid, voxels)
    before, how = starting_point(fixed, moving, result.initial)
    unmoved = Affine.identity(fixed.ndim).to(fixed.data.device, fixed.grid.dtype)
    volumes: dict[str, Bytes] = {}
    for name, image, through in (("fixed", fixed, unmoved), ("moving", moving, before), ("warped", moving, transform)):
        seen = warp(Image(image.data, image.grid, None, image.labels), through, grid)
        volumes[name] = _as_bytes(shown(seen.data[0], window(image.data)) * 255)
        if seen.labels is not None:
            values = seen.labels[0, 0].cpu().numpy()
            volumes[f"{name} labels"] = np.where(values == 0, 0, 1 + (values - 1) % 255).astype(np.uint8)
    determinant = jacobian_determinant(transform.displacement(grid), grid)[0].cpu().numpy()
    volumes["Jacobian"] = np.where(determinant <= 0, 0, np.maximum(1, _as_bytes(np.clip(determinant, 0, 2) * 127)))
    volumes["Jacobian"] = volumes["Jacobian"].astype(np.uint8)
    lattice = _lattice(grid, transform, before)
    landmarks = _landmarks(fixed, moving, grid, {"before": before, "after": transform})
    return Views(grid, volumes, lattice, landmarks, how.strip() or "as given")


def _lattice(grid: Grid, transform: Transform, before: Transform) -> tuple[NDArray[np.int16], int]:
    """Return the displacement of every few voxels without the initial alignment."""
    step = max(1, -(-max(grid.shape) // LINES))
    affine = grid.affine.clone()
    affine[:, : grid.ndim, : grid.ndim] *= step
    coarse = Grid(tuple((n - 1) // step + 1 for n in grid.shape), affine)
    points = transform.map_grid(coarse)
    points = before.inverse()(points) if isinstance(before, Affine) else points
    moved = (grid.to_index(points) - grid.to_index(coarse.points))[0]
    limited = np.clip(np.round(torch.nan_to_num(moved).cpu().numpy() * STEPS), -32767, 32767)
    return limited.astype(np.int16), step


def _landmarks(
    fixed: Image, moving: Image, grid: Grid, transforms: dict[str, Transform]
) -> dict[str, list[list[float | None]]]:
    if fixed.landmarks is None:
        return {}
    found = {"fixed": _listed(grid.to_index(fixed.landmarks[:, :LANDMARKS].to(grid.affine)))}
    if moving.landmarks is not None and moving.landmarks.shape == fixed.landmarks.shape:
        for name, transform in transforms.items():
            back = transform.inverse()(moving.landmarks[:, :LANDMARKS])
            found[name] = _listed(grid.to_index(back.to(grid.affine)))
    return found


def _listed(points: Tensor) -> list[list[float | None]]:
    """Return points as numbers; ``None`` where a landmark is not marked, because JSON has no NaN."""
    rounded = points[0].detach().cpu().double().numpy().round(2)
    return [[float(v) if np.isfinite(v) else None for v in point] for point in rounded]


def _first(image: Image) -> Image:
    """Return the first image of a batch."""
    parts = (None if p is None else p[:1] for p in (image.mask, image.labels, image.landmarks))
    return Image(image.data[:1], Grid(image.grid.shape, image.grid.affine[:1]), *parts)


def _as_bytes(values: NDArray[np.floating[Any]]) -> Bytes:
    return np.round(values).astype(np.uint8)


def _replaced(values: list[float], k: int, value: float) -> NDArray[np.float64]:
    return np.array([value if i == k else v for i, v in enumerate(values)])
