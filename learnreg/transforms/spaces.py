"""Coordinates that other tools use in place of mm LPS, and transforms between them.

A space is a homogeneous matrix ``(4, 4)`` from mm LPS to its coordinates, in float64.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from learnreg.fields import channels_last
from learnreg.grid import Grid
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import chain
from learnreg.transforms.displacement import Displacement

Matrix: TypeAlias = NDArray[np.floating]
RAS: Matrix = np.diag([-1.0, -1.0, 1.0, 1.0])  # mm LPS to mm RAS, and back


def affine_of(grid: Grid) -> Matrix:
    """Return the affine of a 3-D grid, index ``(i, j, k)`` to mm LPS."""
    found: Matrix = grid.affine[0].detach().double().cpu().numpy()
    return found


def index_space(grid: Grid) -> Matrix:
    """Return the space of voxel indices ``(i, j, k)`` of a grid."""
    return np.linalg.inv(affine_of(grid))


def fsl_space(grid: Grid) -> Matrix:
    """Return the space of FSL: voxel indices times the voxel sizes.

    The first axis is counted from the other end if the voxel axes are right-handed (positive determinant), which FSL
    calls "neurological". (nitransforms agrees for matrices. Its warp fields flip ``x`` on every grid, which is wrong
    for oblique and for left-handed ones, so the formula is written out here.)
    """
    scaling = np.diag([*grid.spacing[0].double().tolist(), 1.0])
    if np.linalg.det(affine_of(grid)) > 0:
        scaling[0, 3] = (grid.shape[-1] - 1) * scaling[0, 0]
        scaling[0, 0] *= -1
    return np.asarray(scaling @ index_space(grid))


def to_lps(matrix: Matrix, fixed: Matrix, moving: Matrix) -> Affine:
    """Return the affine map in mm LPS of a matrix from the space ``fixed`` to the space ``moving``."""
    return Affine(torch.from_numpy(np.linalg.inv(moving) @ matrix @ fixed).float())


def from_lps(affine: Affine, fixed: Matrix, moving: Matrix) -> Matrix:
    """Return the matrix from the space ``fixed`` to the space ``moving`` of an affine map in mm LPS."""
    found: Matrix = moving @ affine.matrix[0].detach().double().cpu().numpy() @ np.linalg.inv(fixed)
    return found


def field_to_lps(shifts: NDArray[np.floating], sampled: Grid, fixed: Matrix, moving: Matrix) -> Transform:
    """Return the transform of a field that is added to coordinates: ``moving(T(x)) = fixed(x) + d(x)``.

    It is ``x -> A (x + v(x))`` with the linear map ``A`` between the spaces, so that nothing is resampled, and ``A``
    holds beyond the field.

    Args:
        shifts: ``d`` as ``(x, y, z, 3)``.
        sampled: Grid of the samples of ``d``.
        fixed: Space of the fixed image.
        moving: Space of the moving image.
    """
    own = shifts.astype(np.float64) @ np.linalg.inv(fixed[:3, :3]).T
    values = torch.from_numpy(np.ascontiguousarray(own.T, dtype=np.float32))
    field = Displacement(values.unsqueeze(0), sampled)
    linear = np.linalg.inv(moving) @ fixed
    if np.allclose(linear, np.eye(4), atol=1e-6):
        return field
    return chain(field, Affine(torch.from_numpy(linear).float()))


def field_from_lps(transform: Transform, sampled: Grid, fixed: Matrix, moving: Matrix) -> NDArray[np.float32]:
    """Return ``d`` of :func:`field_to_lps` at the samples of a grid, ``(x, y, z, 3)``."""
    with torch.no_grad():
        points = sampled.points[0].double()
        mapped = points + channels_last(transform.displacement(sampled))[0].double()
    there, here = (mapped.cpu().numpy(), points.cpu().numpy())
    shifts = there @ moving[:3, :3].T + moving[:3, 3] - (here @ fixed[:3, :3].T + fixed[:3, 3])
    return np.ascontiguousarray(shifts.transpose(2, 1, 0, 3), dtype=np.float32)
