"""Convert what a network predicts, in voxels of its input, to a transform in mm."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid, linear_map
from learnreg.sampling import sample
from learnreg.transforms import BSpline, Displacement, Transform, Velocity, spline_lattice
from learnreg.typing import FieldTensor

Output = Literal["velocity", "displacement", "bspline", "bspline-velocity"]


def pad_to_multiple(values: Tensor, grid: Grid, multiple: int) -> tuple[Tensor, Grid]:
    """Pad with zeros after the last samples until each size is a multiple; return the values and their grid."""
    missing = [-n % multiple for n in values.shape[2:]]
    if not any(missing):
        return values, grid
    padded = F.pad(values, [p for n in reversed(missing) for p in (0, n)])
    return padded, Grid(tuple(padded.shape[2:]), grid.affine)


def voxels_to_mm(voxels: FieldTensor, grid: Grid) -> tuple[FieldTensor, Grid]:
    """Convert a predicted field from index units of a grid to mm.

    Args:
        voxels: ``(B, D, *shape)``, components along the index axes ``(i, j, k)`` in voxels of ``grid``; ``shape`` may
            be coarser than the grid.
        grid: The field of view.

    Returns:
        The field in mm, float32, and the grid of its samples.
    """
    field = linear_map(grid.affine, voxels)
    return field, grid.resized(tuple(voxels.shape[2:]))


def as_transform(voxels: FieldTensor, grid: Grid, output: Output, steps: int) -> Transform:
    """Convert a predicted field in index units of ``grid`` to a transform; see :func:`voxels_to_mm`."""
    field, control = voxels_to_mm(voxels, grid)
    if output == "velocity":
        return Velocity(field, control, steps)
    if output == "displacement":
        return Displacement(field, control)
    lattice = spline_lattice(grid, (grid.extent[0] / control.size).tolist())
    spline = BSpline(sample(field, control, lattice.points, padding="border"), lattice)
    if output == "bspline":
        return spline
    half = grid.coarsened(2)
    return Velocity(spline.displacement(half), half, steps)


def check_output(name: str, output: str) -> None:
    """Raise ``InputError`` unless the output is known."""
    if output not in get_args(Output):
        raise InputError(f"{name} output is {', '.join(get_args(Output))}, got {output!r}.")


def per_spacing(field: FieldTensor, grid: Grid) -> FieldTensor:
    """Convert a field in mm to units of the spacing of ``grid``, as networks take it."""
    return field / grid.spacing.reshape(-1, grid.ndim, *[1] * grid.ndim)
