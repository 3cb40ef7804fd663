"""Convert the output of a network, in voxels of its input, to a transform in mm."""

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
    """Pad with zeros after the last samples until each size is a multiple of a number.

    Args:
        values: ``(B, C, *grid.shape)``.
        grid: Where ``values`` are sampled.
        multiple: Number that divides each padded size.

    Returns:
        The padded values and their grid.
    """
    missing = [-n % multiple for n in values.shape[2:]]
    if not any(missing):
        return values, grid
    padded = F.pad(values, [p for n in reversed(missing) for p in (0, n)])
    return padded, Grid(tuple(padded.shape[2:]), grid.affine)


def voxels_to_mm(voxels: FieldTensor, grid: Grid) -> tuple[FieldTensor, Grid]:
    """Convert a field from voxels of a grid to mm.

    Args:
        voxels: ``(B, D, *shape)``, components along the index axes ``(i, j, k)`` in voxels of ``grid``; ``shape`` may
            be coarser than the grid.
        grid: Grid whose voxels are the unit; ``voxels`` cover its field of view.

    Returns:
        The field ``(B, D, *shape)``, mm, components ``(x, y, z)``, and the grid of its samples.
    """
    field = linear_map(grid.affine, voxels)
    return field, grid.resized(tuple(voxels.shape[2:]))


def as_transform(voxels: FieldTensor, grid: Grid, output: Output, steps: int) -> Transform:
    """Convert a field in voxels of a grid to a transform.

    Args:
        voxels: See :func:`voxels_to_mm`.
        grid: See :func:`voxels_to_mm`.
        output: See :class:`learnreg.networks.UNet`.
        steps: Number of squarings of a velocity.
    """
    field, control = voxels_to_mm(voxels, grid)
    if output == "velocity":
        return Velocity(field, control, steps)
    if output == "displacement":
        return Displacement(field, control)
    # The lattice of a B-spline has control points outside of the grid; they get the border values of the field.
    lattice = spline_lattice(grid, (grid.extent[0] / control.size).tolist())
    spline = BSpline(sample(field, control, lattice.points, padding="border"), lattice)
    if output == "bspline":
        return spline
    half = grid.coarsened(2)
    return Velocity(spline.displacement(half), half, steps)


def check_output(name: str, output: str) -> None:
    """Raise ``InputError`` unless ``output`` is known; ``name`` is the network's name, for the message."""
    if output not in get_args(Output):
        raise InputError(f"{name} output is {', '.join(get_args(Output))}, got {output!r}.")


def per_spacing(field: FieldTensor, grid: Grid) -> FieldTensor:
    """Divide a field in mm by the spacing of ``grid``, so that a network gets values of about the same size."""
    return field / grid.spacing.reshape(-1, grid.ndim, *[1] * grid.ndim)
