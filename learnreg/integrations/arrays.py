"""Images of MONAI and torchio: channels first, then ``(x, y, z)``, with an affine in mm RAS or LPS."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.methods import Registration
from learnreg.sampling import sample_labels


def image_from_array(
    values: Tensor, affine: Tensor | NDArray[np.floating], *, space: str = "RAS", name: str = "image"
) -> Image:
    """Convert an array with an affine to an image.

    Args:
        values: ``(C, x, y)`` or ``(C, x, y, z)``.
        affine: Homogeneous, voxel index to mm; of a larger dimension than the image, its first axes count.
        space: ``"RAS"`` or ``"LPS"``, where ``affine`` leads.
        name: Name in error messages.

    Raises:
        InputError: The image is not 2-D or 3-D, the affine is sheared or not finite, or the space is unknown.

    Example:
        >>> image_from_array(torch.zeros(1, 4, 5, 6), np.eye(4)).grid
        Grid(shape=(6, 5, 4), spacing=(1, 1, 1) mm, origin=(-0, -0, 0) mm)
    """
    ndim = values.ndim - 1
    given = torch.as_tensor(affine, dtype=torch.float64).cpu()
    if ndim not in (2, 3) or given.ndim != 2 or given.shape[0] != given.shape[1] or given.shape[0] < ndim + 1:
        raise InputError(f"{name} must be (C, x, y) or (C, x, y, z) with an affine, got {tuple(values.shape)}.")
    if space not in ("RAS", "LPS"):
        raise InputError(f"{name} has coordinates in {space!r}; RAS and LPS are known.")
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:ndim, :ndim], matrix[:ndim, ndim] = given[:ndim, :ndim], given[:ndim, -1]
    if space == "RAS":
        matrix[:2] *= -1
    columns = matrix[:ndim, :ndim] / matrix[:ndim, :ndim].norm(dim=0)
    if not torch.allclose(columns.T @ columns, torch.eye(ndim, dtype=torch.float64), atol=1e-3):  # or NaN
        raise InputError(f"The affine of {name} is sheared or not finite; resample it to a grid of boxes first.")
    data = values.as_tensor() if hasattr(values, "as_tensor") else values  # MONAI's tensors carry their history along
    data = data.permute(0, *range(ndim, 0, -1)).contiguous().float()[None]
    return Image(data, Grid(tuple(data.shape[2:]), matrix.float()).to(data.device))


def array_from_image(values: Tensor) -> Tensor:
    """Return values ``(1, C, *grid.shape)`` as ``(C, x, y, z)``.

    Example:
        >>> array_from_image(torch.zeros(1, 2, 6, 5, 4)).shape
        torch.Size([2, 4, 5, 6])
    """
    return values[0].permute(0, *range(values.ndim - 2, 0, -1)).contiguous()


def warped_labels(labels: Image, result: Registration) -> Tensor:
    """Return a label map, given as the data of an image, on the fixed grid by nearest neighbor, as an array."""
    mapped = result.sampled.map_grid(result.fixed.grid)
    return array_from_image(sample_labels(labels.data.round().long(), labels.grid, mapped, mode="nearest"))
