"""Files of challenges: the displacements that Learn2Reg and LUMIR take."""

from __future__ import annotations

import re
from pathlib import Path

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.transforms import Transform
from learnreg.transforms.files import write_transform
from learnreg.typing import PathLike

NAME = re.compile(r"(\d{4})_(\d{4})\.(?:nii|nii\.gz|mha|mgz)$")


def submission_name(fixed: PathLike, moving: PathLike) -> str:
    """Return the name of a pair's file, ``disp_<fixed>_<moving>``, from the names of its images.

    Args:
        fixed: A file whose name ends in a subject and a modality of four digits each, ``..._0001_0000.nii.gz``.
        moving: The same of the moving image.

    Raises:
        InputError: A name has no such numbers.

    Example:
        >>> submission_name("OASIS_0438_0000.nii.gz", "OASIS_0439_0000.nii.gz")
        'disp_0438_0439.nii.gz'
        >>> submission_name("ThoraxCBCT_0011_0001.nii.gz", "ThoraxCBCT_0011_0000.nii.gz")
        'disp_0011_0001_0011_0000.nii.gz'
    """
    (first, seen), (second, other) = _numbers(fixed), _numbers(moving)
    short = seen == other or (seen, other) == ("0000", "0001")
    return f"disp_{first}_{second}.nii.gz" if short else f"disp_{first}_{seen}_{second}_{other}.nii.gz"


def _numbers(path: PathLike) -> tuple[str, str]:
    found = NAME.search(Path(path).name)
    if found is None:
        raise InputError(
            f"{path} is not named as in Learn2Reg, with a subject and a modality of four digits each "
            "(NAME_0001_0000.nii.gz); rename it to write a submission."
        )
    return found[1], found[2]


def write_displacement(transform: Transform, fixed: Grid, moving: Grid, path: PathLike) -> None:
    """Write a displacement in voxels as Learn2Reg's evaluation script reads it.

    The moving array is sampled at ``index + displacement`` of the fixed array, where arrays have the axes of the NIfTI
    file, as nibabel reads it: ``scipy.ndimage.map_coordinates(moving, identity + displacement)``.

    Args:
        transform: Points of the fixed space to points of the moving space, mm.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.
        path: A ``.nii.gz``, ``(x, y, z, 3)`` in float32.

    Raises:
        InputError: The images are 2-D.
    """
    if fixed.ndim != 3:
        raise InputError("Learn2Reg's displacements are of 3-D images; these are 2-D.")
    write_transform(transform, fixed, path, format="learn2reg", moving=moving)
