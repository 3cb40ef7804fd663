"""``learnreg compose``, ``invert``, ``convert`` and ``jacobian``: work with saved transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from learnreg.apps.apply import read_chain
from learnreg.errors import InputError
from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.headers import SUFFIXES
from learnreg.io import read_image, write_image
from learnreg.transforms import Transform
from learnreg.transforms.files import (
    AFFINE,
    SUFFIXES as TRANSFORM_SUFFIXES,
    WARP,
    TransformFormat,
    output_format,
    read_transform,
    write_transform,
)
from learnreg.transforms.inverse import Residual, inverse_of, inverse_residual
from learnreg.transforms.itk import TRANSFORM_SUFFIXES as ITK_SUFFIXES
from learnreg.typing import PathLike
from learnreg.writing import check_output

FLOOR = 1e-9  # of a determinant whose logarithm is taken


def convert(
    transforms: Sequence[PathLike],
    output: PathLike,
    *,
    reference: PathLike | None = None,
    moving: PathLike | None = None,
    from_format: TransformFormat | None = None,
    to_format: TransformFormat | None = None,
    overwrite: bool = False,
) -> str:
    """Write the composition of transforms in another format.

    Args:
        transforms: Files, fixed to moving, the first applied to points first.
        output: The file to write.
        reference: The fixed image; ``None`` takes the grid of the first field.
        moving: The moving image, on which the coordinates of FSL and Learn2Reg depend.
        from_format: Of the files, see :func:`learnreg.transforms.read_transform`; ``None`` finds it.
        to_format: Of the output; ``None`` is that of its suffix.
        overwrite: Replace the output.

    Returns:
        A line that tells what was written.

    Raises:
        InputError: A file cannot be read or written, or an image has to be named.
    """
    form = output_format(output, to_format)
    if form == "ants":
        check_output(f"{output}{AFFINE}", overwrite=overwrite, suffixes=(".mat",))
        check_output(f"{output}{WARP}", overwrite=overwrite)
    else:
        check_output(output, overwrite=overwrite, suffixes=(*TRANSFORM_SUFFIXES, *SUFFIXES))
    grid, other = (None if file is None else read_image(file).grid for file in (reference, moving))
    ndim = None if grid is None else grid.ndim
    forward = read_chain(transforms, ndim=ndim, format=from_format, fixed=grid, moving=other)
    if grid is None:
        grid = own_grid(forward, output, form)
    write_transform(forward, grid, output, format=form, moving=other)
    return f"Wrote {output}"


def invert(
    transforms: Sequence[PathLike], output: PathLike, *, reference: PathLike | None = None, overwrite: bool = False
) -> str:
    """Write the inverse of the composition of transforms, for ITK.

    Args:
        transforms: Files, fixed to moving, the first applied to points first.
        output: The file to write.
        reference: The moving image; fields need it.
        overwrite: Replace the output.

    Returns:
        A line that tells what was written, and how exact the inverse is.

    Raises:
        InputError: A file cannot be read or written, or an image has to be named.
    """
    check_output(output, overwrite=overwrite, suffixes=(*ITK_SUFFIXES, *SUFFIXES))
    grid = None if reference is None else read_image(reference).grid
    forward = read_chain(transforms, ndim=None if grid is None else grid.ndim, moving=grid)
    if grid is None:
        if forward.fields():
            raise InputError("The inverse of a field needs a grid: name the moving image with --reference.")
        grid = own_grid(forward, output, "itk")
    return f"Wrote {output}; {described(write_inverse(forward, grid, output))}"


def write_inverse(forward: Transform, grid: Grid, path: PathLike) -> Residual:
    """Write the inverse of a transform, and return its error as it was written.

    Args:
        forward: Fixed to moving.
        grid: Of the moving image.
        path: See :func:`learnreg.transforms.write_transform`.
    """
    write_transform(inverse_of(forward), grid, path)
    return inverse_residual(forward, read_transform(path), grid)


def described(residual: Residual) -> str:
    """Return a residual in words."""
    if residual.share == 0:
        return "the inverse could not be checked, because no point of the grid stays in it"
    return f"the inverse is off by {residual.mean:.3f} mm on average and {residual.greatest:.2f} mm at most"


def own_grid(transform: Transform, output: PathLike, form: TransformFormat) -> Grid:
    """Return the grid of the first field of a transform; any grid for one without a field that is written for ITK.

    Raises:
        InputError: The file needs another grid.
    """
    fields = transform.fields()
    if fields:
        return fields[0][1]
    if str(output).lower().endswith(SUFFIXES) or form == "ants":
        raise InputError("A field needs a grid: name the fixed image with --reference.")
    if form not in ("itk", "c3d"):
        raise InputError(f"A file of {form} describes the fixed image; name it with --reference.")
    return Grid.regular((2,) * transform.ndim)


def jacobian(
    transforms: Sequence[PathLike],
    *,
    output: PathLike,
    reference: PathLike,
    log: bool = False,
    inverse: bool = False,
    overwrite: bool = False,
) -> str:
    """Write the determinant of the Jacobian matrix, or its logarithm, as an image; return a line about it."""
    check_output(output, overwrite=overwrite)
    grid = read_image(reference).grid
    fixed, moving = (None, grid) if inverse else (grid, None)
    transform = read_chain(transforms, ndim=grid.ndim, inverse=inverse, fixed=fixed, moving=moving)
    determinant = jacobian_determinant(transform.displacement(grid), grid)[0]
    folding = 100 * float((determinant <= 0).double().mean())
    values = determinant.clamp(min=FLOOR).log() if log else determinant
    write_image(values.to(torch.float32)[None], grid, output)
    low, high = float(determinant.min()), float(determinant.max())
    return f"Wrote {Path(output)}; determinant {low:.3f} to {high:.3f}, folding {folding:.3f} %"
