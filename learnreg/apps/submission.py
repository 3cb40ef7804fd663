"""Files of challenges: the displacements that Learn2Reg and LUMIR take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from learnreg.errors import InputError
from learnreg.fields import channels_first, channels_last
from learnreg.grid import Grid
from learnreg.separable import slabs
from learnreg.transforms import Transform
from learnreg.typing import PathLike
from learnreg.writing import write_atomically

NAME = re.compile(r"(\d{4})_(\d{4})\.(?:nii|nii\.gz|mha|mgz)$")
Suffix = Literal[".nii.gz", ".npz"]


def voxel_displacement(transform: Transform, fixed: Grid, moving: Grid) -> NDArray[np.float32]:
    """Compute the displacement in voxels, as Learn2Reg defines it.

    The moving array is sampled at ``index + displacement`` of the fixed array, where arrays have the axes of the NIfTI
    file, as nibabel reads it: ``scipy.ndimage.map_coordinates(moving, identity + displacement)``.

    Args:
        transform: Points of the fixed space to points of the moving space, mm.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.

    Returns:
        ``(x, y, z, 3)``, or ``(x, y, 2)`` in 2-D; samples of the moving image minus samples of the fixed image.

    Example:
        >>> grid = learnreg.Grid.regular((4, 5, 6), spacing=2.0)
        >>> field = voxel_displacement(learnreg.Affine.translation([2.0, 0.0, 0.0]), grid, grid)
        >>> field.shape, field[0, 0, 0].round(3).tolist()
        ((6, 5, 4, 3), [1.0, 0.0, 0.0])
    """
    displacement, parts = transform.displacement(fixed), []
    for rows in slabs(fixed.shape, 1, displacement.device):
        points = fixed.rows(rows).points
        mapped = points + channels_last(displacement[:, :, rows])
        parts.append(channels_first(moving.to_index(mapped) - fixed.to_index(points)))
    field = torch.cat(parts, dim=2)[0]
    return np.ascontiguousarray(field.permute(*range(field.ndim - 1, 0, -1), 0).numpy().astype(np.float32))


def submission_name(fixed: PathLike, moving: PathLike, suffix: Suffix = ".nii.gz") -> str:
    """Return the name of a pair's file, ``disp_<fixed>_<moving>``, from the names of its images.

    Args:
        fixed: A file whose name ends in a subject and a modality of four digits each, ``..._0001_0000.nii.gz``.
        moving: The same of the moving image.
        suffix: ``".nii.gz"`` or ``".npz"``.

    Raises:
        InputError: A name has no such numbers, or the suffix is unknown.

    Example:
        >>> submission_name("OASIS_0438_0000.nii.gz", "OASIS_0439_0000.nii.gz")
        'disp_0438_0439.nii.gz'
        >>> submission_name("ThoraxCBCT_0011_0001.nii.gz", "ThoraxCBCT_0011_0000.nii.gz")
        'disp_0011_0001_0011_0000.nii.gz'
    """
    if suffix not in (".nii.gz", ".npz"):
        raise InputError(f"A submission to Learn2Reg is .nii.gz or .npz, got {suffix!r}.")
    (first, seen), (second, other) = _numbers(fixed), _numbers(moving)
    short = seen == other or (seen, other) == ("0000", "0001")
    return f"disp_{first}_{second}{suffix}" if short else f"disp_{first}_{seen}_{second}_{other}{suffix}"


def _numbers(path: PathLike) -> tuple[str, str]:
    found = NAME.search(Path(path).name)
    if found is None:
        raise InputError(
            f"{path} is not named as in Learn2Reg, with a subject and a modality of four digits each "
            "(NAME_0001_0000.nii.gz); rename it to write a submission."
        )
    return found[1], found[2]


def write_displacement(transform: Transform, fixed: Grid, moving: Grid, path: PathLike) -> None:
    """Write :func:`voxel_displacement` as Learn2Reg's evaluation script reads it, in float32.

    Args:
        transform: Points of the fixed space to points of the moving space, mm.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.
        path: ``.nii.gz``, with the affine matrix of the fixed image; or ``.npz``, compressed.

    Raises:
        InputError: The images are 2-D, or the suffix is unknown.
    """
    if fixed.ndim != 3:
        raise InputError("Learn2Reg's displacements are of 3-D images; these are 2-D.")
    field = voxel_displacement(transform, fixed, moving)
    name = str(path)
    if name.endswith(".npz"):
        write_atomically(path, lambda part: np.savez_compressed(part, field))
    elif name.endswith(".nii.gz"):
        affine = fixed.affine[0].double().numpy().copy()
        affine[:2] *= -1  # LPS to RAS
        write_atomically(path, lambda part: nib.save(nib.Nifti1Image(field, affine), part))
    else:
        raise InputError(f"A submission to Learn2Reg is .nii.gz or .npz, got {path}.")
