"""Series: the volumes of a 4-D image aligned to their mean, or to one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.methods.base import Method
from learnreg.transforms import Affine, Sampled, Transform, linear_through_landmarks
from learnreg.warping import warp

PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
RADIUS = 50.0  # mm, of the sphere on which a rotation is measured as a distance
TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class RegisteredSeries:
    """Result of :func:`register_series`.

    Args:
        reference: Mean of the registered volumes, or the volume to which the others were registered.
        transforms: Points of the reference to points of each volume, mm LPS.
        volumes: The registered volumes, on the grid of the reference.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8)))
        >>> RegisteredSeries(image, (learnreg.Affine.identity(3),), (image,)).motion().shape
        (1, 6)
    """

    reference: Image
    transforms: tuple[Transform, ...]
    volumes: tuple[Image, ...]

    def motion(self) -> NDArray[np.float64]:
        """Return :func:`motion_parameters` of each volume, ``(T, 6)``."""
        return np.stack([motion_parameters(transform, self.reference.grid) for transform in self.transforms])


@torch.no_grad()
def register_series(
    volumes: Sequence[Image],
    method: Method,
    *,
    to: int | Literal["mean"] = "mean",
    rounds: int = 2,
    on_volume: Callable[[int], Any] | None = None,
) -> RegisteredSeries:
    """Align the volumes of a series.

    The volumes lie in one scanner, so each registration starts from the identity, and in later rounds from the
    transform of the round before.

    Args:
        volumes: At least two, on one grid.
        method: Method that registers each volume, usually ``rigid``.
        to: ``"mean"``, or the number of a volume from 0.
        rounds: With ``"mean"``: the first mean is that of the volumes as they are, each further one that of the
            registered volumes.
        on_volume: Called with 1 after each registration, for progress bars.

    Returns:
        The reference, the transforms and the registered volumes.

    Raises:
        InputError: There are fewer than two volumes, their grids differ, or there is no such volume.

    Example:
        >>> grid = learnreg.Grid.regular((12, 12, 12))
        >>> blob = torch.exp(-(grid.points - 1).square().sum(-1) / torch.tensor(8.0))[:, None]
        >>> series = [learnreg.Image(blob, grid), learnreg.Image(blob.roll(1, -1), grid)]
        >>> found = register_series(series, learnreg.load_method("rigid"), to=0)
        >>> [round(x) for x in found.transforms[1](torch.zeros(1, 1, 3)).flatten().tolist()]
        [1, 0, 0]
    """
    _check(volumes, to, rounds)
    grid, ndim = volumes[0].grid, volumes[0].ndim
    transforms: list[Transform] = [Affine.identity(ndim, dtype=grid.dtype).to(grid.device) for _ in volumes]
    registered = list(volumes)
    for _ in range(rounds if to == "mean" else 1):
        reference = mean_of(registered) if to == "mean" else volumes[to]
        for number, volume in enumerate(volumes):
            if number != to:
                with torch.enable_grad():
                    transforms[number] = method(reference, volume, initial=transforms[number]).transform.detach()
                registered[number] = warp(volume, transforms[number], grid)
            if on_volume is not None:
                on_volume(1)
    return RegisteredSeries(mean_of(registered) if to == "mean" else volumes[to], tuple(transforms), tuple(registered))


def _check(volumes: Sequence[Image], to: int | Literal["mean"], rounds: int) -> None:
    if len(volumes) < 2:
        raise InputError(f"A series needs at least two volumes, got {len(volumes)}.")
    if not all(volume.grid.matches(volumes[0].grid) for volume in volumes):
        raise InputError("The volumes of a series need one grid; resample them first.")
    if to != "mean" and not (isinstance(to, int) and 0 <= to < len(volumes)):
        raise InputError(f"to must be 'mean' or a volume from 0 to {len(volumes) - 1}, got {to!r}.")
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, got {rounds}.")


def mean_of(volumes: Sequence[Image]) -> Image:
    """Return the mean of images on one grid; where an image is unknown, it does not count."""
    total = torch.zeros_like(volumes[0].data)
    count = torch.zeros_like(volumes[0].data[:, :1])
    for volume in volumes:
        known = torch.ones_like(count) if volume.mask is None else (volume.mask != 0).to(count.dtype)
        total += volume.data * known
        count += known
    mask = None if bool((count > 0).all()) else (count > 0).to(count.dtype)
    return Image(total / count.clamp(min=1), volumes[0].grid, mask)


def motion_parameters(transform: Transform, grid: Grid) -> NDArray[np.float64]:
    """Return the rigid motion of the head in a transform, as translations and rotations in mm RAS.

    It is the motion ``x -> R (x - c) + c + t`` about the center ``c`` of the grid with ``R = Rz Ry Rx``; of a transform
    that is not rigid, that of its least-squares affine map, with the nearest rotation.

    Args:
        transform: Points of the reference to points of the volume, 3-D.
        grid: Of the reference.

    Returns:
        ``(6,)``: ``trans_x, trans_y, trans_z`` in mm and ``rot_x, rot_y, rot_z`` in radians, along x to the right, y to
        the front, z to the top of the patient.
    """
    from scipy.spatial.transform import Rotation

    whole = transform.transform if isinstance(transform, Sampled) else transform
    if not isinstance(whole, Affine):
        points = grid.resized([min(n, 12) for n in grid.shape]).points.flatten(1, -2).double()
        whole = linear_through_landmarks(points, whole(points.to(grid.dtype)).double())
    matrix = whole.matrix[0].detach().double().cpu().numpy()
    center = grid.center[0].double().cpu().numpy()
    moved = matrix[:3, :3] @ center + matrix[:3, 3] - center
    left, _, right = np.linalg.svd(matrix[:3, :3])
    turn = np.diag(TO_RAS) @ left @ right @ np.diag(TO_RAS)
    return np.concatenate([TO_RAS * moved, Rotation.from_matrix(turn).as_euler("xyz")])


def framewise_displacement(motion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the framewise displacement, the sum of the absolute changes of the six parameters.

    Args:
        motion: ``(T, 6)``, mm and radians.

    Returns:
        ``(T,)``, mm; NaN for the first volume. Rotations count as arcs on a sphere of 50 mm.

    Source:
        Power et al., Spurious but systematic correlations in functional connectivity MRI networks arise from subject
        motion, NeuroImage 59 (2012).

    Example:
        >>> framewise_displacement(np.array([[0, 0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0.02]])).tolist()
        [nan, 2.0]
    """
    change = np.abs(np.diff(motion, axis=0)) * np.array([1.0] * 3 + [RADIUS] * 3)
    return np.concatenate([[np.nan], change.sum(axis=1)])
