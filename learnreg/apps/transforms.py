"""``learnreg compose``, ``invert``, ``convert`` and ``jacobian``: work with saved transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from learnreg.apps.apply import read_chain
from learnreg.apps.output import recorded_warnings
from learnreg.errors import InputError
from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.headers import SUFFIXES
from learnreg.io import read_image, write_image
from learnreg.transforms import Transform
from learnreg.transforms.inverse import Residual, inverse_of, inverse_residual
from learnreg.transforms.itk import TRANSFORM_SUFFIXES, read_transform, write_transform
from learnreg.typing import PathLike
from learnreg.writing import check_output

FLOOR = 1e-9  # of a determinant whose logarithm is taken


def rewrite(
    transforms: Sequence[PathLike],
    *,
    output: PathLike,
    reference: PathLike | None = None,
    overwrite: bool = False,
    inverse: bool = False,
) -> None:
    """Write the composition of transforms, or its inverse, in the format of the output's suffix."""
    check_output(output, overwrite=overwrite, suffixes=(*TRANSFORM_SUFFIXES, *SUFFIXES))
    told = f"Wrote {output}"
    with recorded_warnings():
        grid = None if reference is None else read_image(reference).grid
        forward = read_chain(transforms, ndim=None if grid is None else grid.ndim)
        if grid is None:
            grid = own_grid(forward, output, inverse=inverse)
        if inverse:
            told += f"; {described(write_inverse(forward, grid, output))}"
        else:
            write_transform(forward, grid, output)
    print(told)


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


def own_grid(transform: Transform, output: PathLike, *, inverse: bool = False) -> Grid:
    """Return the grid of the first field of a transform; any grid for one without a field.

    Raises:
        InputError: The file needs another grid.
    """
    fields = transform.fields()
    if inverse and fields:
        raise InputError("The inverse of a field needs a grid: name the moving image with --reference.")
    if str(output).lower().endswith(SUFFIXES) and not fields:
        raise InputError("A field needs a grid: name the fixed image with --reference.")
    return fields[0][1] if fields else Grid.regular((2,) * transform.ndim)


def jacobian(
    transforms: Sequence[PathLike],
    *,
    output: PathLike,
    reference: PathLike,
    log: bool = False,
    inverse: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the determinant of the Jacobian matrix, or its logarithm, as an image."""
    check_output(output, overwrite=overwrite)
    with recorded_warnings():
        grid = read_image(reference).grid
        transform = read_chain(transforms, ndim=grid.ndim, inverse=inverse)
        determinant = jacobian_determinant(transform.displacement(grid), grid)[0]
        folding = 100 * float((determinant <= 0).double().mean())
        values = determinant.clamp(min=FLOOR).log() if log else determinant
        write_image(values.to(torch.float32)[None], grid, output)
    low, high = float(determinant.min()), float(determinant.max())
    print(f"Wrote {Path(output)}; determinant {low:.3f} to {high:.3f}, folding {folding:.3f} %")
