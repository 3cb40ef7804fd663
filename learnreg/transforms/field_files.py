"""Displacement fields of FSL and Learn2Reg, and BIDS X5 files."""

from __future__ import annotations

import zipfile
import zlib
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learnreg.errors import InputError, MissingPackageError
from learnreg.grid import Grid
from learnreg.headers import affine_in_lps
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.sampled import Sampled
from learnreg.transforms.spaces import (
    RAS,
    affine_of,
    field_from_lps,
    field_to_lps,
    from_lps,
    fsl_space,
    index_space,
    to_lps,
)

RELATIVE = b"relative warp"  # description of our fields
FNIRT_FIELD, FNIRT_COEFFICIENTS = 2006, (2007, 2008, 2009, 2016)  # intent codes that FSL writes


def nifti_values(path: Path) -> tuple[NDArray[np.floating], NDArray[np.float64], int, bytes]:
    """Read a NIfTI file.

    Returns:
        Values as stored, affine to mm RAS, intent code, and description.

    Raises:
        InputError: It is damaged.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        stored = nibabel.load(path)  # type: ignore[attr-defined]
        values = np.asarray(stored.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise InputError(f"{path} is no NIfTI file, or is damaged; write it again.") from error
    return values, stored.affine, int(stored.header["intent_code"]), bytes(stored.header["descrip"].item())


def write_nifti_field(values: NDArray[np.floating], grid: Grid, path: str, intent: int = 0) -> None:
    """Write a field ``(x, y, z, 3)`` as a 4-D NIfTI file, and read it back to compare."""
    import nibabel

    image = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), RAS @ affine_of(grid))
    image.header["intent_code"] = intent
    image.header["descrip"] = RELATIVE if intent == FNIRT_FIELD else b""
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    nibabel.save(image, path)  # type: ignore[attr-defined]
    if not np.array_equal(np.asarray(nibabel.load(path).dataobj), image.dataobj):  # type: ignore[attr-defined]
        raise InputError("The field was not written completely; check the space on the disk.")


def read_fsl_field(path: Path, moving: Grid, *, absolute: bool | None = None) -> Transform:
    """Read a warp field of FSL, relative or absolute.

    A relative field is added to the coordinates of the fixed image in FSL's mm, an absolute one replaces them.

    Args:
        path: A 4-D NIfTI file on the grid of the fixed image.
        moving: Grid of the moving image.
        absolute: Which it is. FSL does not store it; ``None`` guesses as applywarp does: the relative field is that of
            the smaller standard deviation. The guess is wrong where voxel axes of both images point to opposite sides.

    Raises:
        InputError: It is not a field, or holds the coefficients of a spline.
    """
    values, affine, intent, note = nifti_values(path)
    if intent in FNIRT_COEFFICIENTS:
        raise InputError(
            f"{path} holds the spline coefficients of fnirt; make a field of it: fnirtfileutils --in={path.name} "
            "--ref=FIXED --out=field.nii.gz --withaff"
        )
    if values.ndim != 4 or values.shape[3] != 3:
        raise InputError(f"{path} has shape {values.shape}; a field of FSL has (x, y, z, 3).")
    sampled = Grid(values.shape[2::-1], torch.from_numpy(affine_in_lps(affine, values.shape[:3], path)).float())
    space = fsl_space(sampled)
    points = sampled.points[0].double().numpy().transpose(2, 1, 0, 3)
    relative = values - (points @ space[:3, :3].T + space[:3, 3])
    if absolute is None:
        absolute = note != RELATIVE and _spread(relative) < _spread(values)
    return field_to_lps(_finite(relative if absolute else values, path), sampled, space, fsl_space(moving))


def _spread(values: NDArray[np.floating]) -> float:
    return float(values.reshape(-1, 3).std(axis=0).sum())


def _finite(values: NDArray[np.floating], path: Path) -> NDArray[np.floating]:
    if not np.isfinite(values).all():
        raise InputError(f"{path} has values that are not finite; write it again.")
    return values


def write_fsl_field(transform: Transform, fixed: Grid, moving: Grid, path: str) -> None:
    """Write a relative warp field of FSL."""
    values = field_from_lps(transform, fixed, fsl_space(fixed), fsl_space(moving))
    write_nifti_field(values, fixed, path, FNIRT_FIELD)


def read_learn2reg(path: Path, fixed: Grid, moving: Grid) -> Transform:
    """Read a field of the Learn2Reg challenge: voxels to add to the voxel indices of the fixed image.

    Args:
        path: ``.npz`` with one array ``(3, x, y, z)``, or a NIfTI file ``(x, y, z, 3)``; at the size of the fixed image
            or at half of it. A half field is in voxels of the full size, and its outermost samples are those of the
            fixed image, as ``scipy.ndimage.zoom`` places them in the challenge's evaluation.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.

    Raises:
        InputError: It has another shape.
    """
    values = _npz(path) if path.suffix == ".npz" else nifti_values(path)[0]
    size = fixed.shape[::-1]
    for last in (values, np.moveaxis(values, 0, -1)) if values.ndim == 4 else ():
        if last.shape == (*size, 3):
            return field_to_lps(_finite(last, path), fixed, index_space(fixed), index_space(moving))
        if last.shape == (*(n // 2 for n in size), 3):
            return field_to_lps(_finite(last, path), half_grid(fixed), index_space(fixed), index_space(moving))
    raise InputError(
        f"{path} has shape {values.shape}; for a fixed image of {size} voxels a Learn2Reg field has (3, x, y, z) in an "
        ".npz or (x, y, z, 3) in a NIfTI file, at this size or half of it."
    )


def _npz(path: Path) -> NDArray[np.floating]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = list(stored)
            values = stored[names[0]] if len(names) == 1 else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"{path} is no .npz of one array, or is damaged; write it again.") from error
    if values is None or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path} must hold one array of numbers, got {len(names)} array(s).")
    return np.asarray(values, dtype=np.float32)


def half_grid(grid: Grid) -> Grid:
    """Return the grid of half as many samples per axis whose outermost samples are those of ``grid``.

    Raises:
        InputError: An axis has fewer than 4 samples.
    """
    if min(grid.shape) < 4:
        raise InputError(f"A field of half the size needs 4 samples per axis, got {grid.shape}.")
    shape = tuple(n // 2 for n in grid.shape)
    affine = grid.affine.double().clone()
    steps = [(n - 1) / (m - 1) for n, m in zip(grid.shape[::-1], shape[::-1], strict=True)]
    affine[:, :3, :3] *= torch.tensor(steps, dtype=torch.float64)
    return Grid(shape, affine.to(grid.dtype))


def write_learn2reg(transform: Transform, fixed: Grid, moving: Grid, path: str, *, half: bool) -> None:
    """Write a field of the Learn2Reg challenge; an ``.npz`` is in half precision, as its rules have it."""
    sampled = half_grid(fixed) if half else fixed
    values = field_from_lps(transform, sampled, index_space(fixed), index_space(moving))
    if path.endswith(".npz"):
        np.savez_compressed(path, np.moveaxis(values, -1, 0).astype(np.float16))
    else:
        write_nifti_field(values, sampled, path)


def _x5() -> ModuleType:
    try:
        from nitransforms.io import x5
    except ImportError as error:
        raise MissingPackageError(
            "An .x5 file needs the package nitransforms: pip install 'learnreg[formats]'."
        ) from error
    return x5


def read_x5(path: Path) -> Transform:
    """Read a BIDS X5 file with nitransforms: a matrix or a dense field in mm RAS.

    Raises:
        InputError: It is damaged, or holds another kind.
        MissingPackageError: nitransforms is not installed.
    """
    x5 = _x5()
    try:
        nodes = x5.from_filename(path)
        if len(nodes) == 1:
            return _from_x5(nodes[0], path)
    except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no X5 file, or is damaged; write it again.") from error
    raise InputError(f"{path} holds {len(nodes)} transforms; write each to a file of its own.")


def _from_x5(node: Any, path: Path) -> Transform:
    values = np.asarray(node.transform, dtype=np.float64)
    if node.type == "linear" and values.shape in ((4, 4), (1, 4, 4)):
        return to_lps(values.reshape(4, 4), RAS, RAS)
    dense = node.type == "nonlinear" and node.representation in ("displacements", "deformations")
    if not dense or values.ndim != 4 or values.shape[3] != 3 or node.domain is None:
        raise InputError(f"{path} holds a {node.type} transform ({node.representation}); write it as a dense field.")
    size = values.shape[:3]
    affine = affine_in_lps(np.asarray(node.domain.mapping, dtype=np.float64), size, path)
    sampled = Grid(size[::-1], torch.from_numpy(affine).float())
    if node.representation == "deformations":
        points = sampled.points[0].double().numpy().transpose(2, 1, 0, 3)
        values = values - points @ RAS[:3, :3]
    return field_to_lps(_finite(values, path), sampled, RAS, RAS)


def write_x5(transform: Transform, fixed: Grid, path: str) -> None:
    """Write a BIDS X5 file with nitransforms: a matrix for a linear transform, else a dense field.

    Raises:
        MissingPackageError: nitransforms is not installed.
    """
    x5 = _x5()
    whole = transform.transform if isinstance(transform, Sampled) else transform
    domain = x5.X5Domain(True, fixed.shape[::-1], RAS @ affine_of(fixed), "cartesian")
    common = {"metadata": {"WrittenBy": "learnreg"}, "dimension_kinds": ("space",) * 3 + ("vector",), "domain": domain}
    parts = getattr(whole, "transforms", (whole,))
    linear = [part for part in parts if isinstance(part, Affine)]
    if len(linear) == len(parts):
        matrix = from_lps(reduce(Affine.then, linear), RAS, RAS)
        node = x5.X5Transform("linear", matrix, subtype="affine", representation="matrix", **common)
    else:
        values = field_from_lps(transform, fixed, RAS, RAS)
        node = x5.X5Transform("nonlinear", values, subtype="densefield", representation="displacements", **common)
    x5.to_filename(path, [node])
