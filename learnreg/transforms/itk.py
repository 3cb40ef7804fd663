"""Read and write the transform files of ITK, ANTs and 3D Slicer."""

from __future__ import annotations

import zlib
from functools import reduce
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from learnreg.errors import InputError, InputTypeError, MissingFileError
from learnreg.grid import Grid
from learnreg.headers import check_finite, itk_reason
from learnreg.io import grid_from_sitk, to_sitk, write_sitk, write_with_itk
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.bspline import BSpline, itk_domain
from learnreg.transforms.composite import chain
from learnreg.transforms.displacement import Displacement
from learnreg.transforms.sampled import Sampled
from learnreg.transforms.velocity import Velocity
from learnreg.typing import PathLike
from learnreg.writing import reserve

TRANSFORM_SUFFIXES = (".h5", ".tfm", ".txt", ".mat")  # that are written, besides those of images
KNOWN = (Affine, BSpline, Displacement, Velocity)  # kinds that ITK has a class for
HDF5 = b"\x89HDF\r\n\x1a\n"  # how a file begins
HEADER = 16384  # bytes of a HDF5 file without its transforms, at most
NESTED = 32  # composites of one composite in each other that are unpacked


def to_itk(transform: Transform, grid: Grid) -> sitk.CompositeTransform:
    """Convert a transform to an ITK composite transform.

    Affine maps, displacements and B-splines keep their kind. Other transforms, with all that acts before them, are
    sampled on ``grid`` as one displacement field. So is a field that acts first, because ITK's fields are 0 outside of
    their buffer.

    Args:
        transform: A batch of 1.
        grid: The fixed grid, on which the transform will be applied.

    Raises:
        InputError: The transform is a batch of several.
    """
    whole = transform if isinstance(transform, Sampled) else Sampled(transform, grid)
    parts = whole.parts()
    sampled = max((i + 1 for i, part in enumerate(parts) if not isinstance(part, KNOWN)), default=0)
    if sampled == 0 and isinstance(parts[0], (Displacement, Velocity)):
        sampled = 1
    written = [_part_to_itk(part) for part in parts[sampled:]]
    if sampled:
        if sampled == whole.deforming and whole.grid.matches(grid):
            field = whole.deformation
        else:
            field = chain(*parts[:sampled]).displacement(grid)
        written.insert(0, _part_to_itk(Displacement(field, grid)))
    return sitk.CompositeTransform(written[::-1])


def _part_to_itk(part: Transform) -> sitk.Transform:
    """Convert a part that ITK has a class for."""
    if isinstance(part, Affine):
        matrix = _only(part.matrix).detach().double().cpu().numpy()
        affine = sitk.AffineTransform(part.ndim)
        affine.SetMatrix(matrix[: part.ndim, : part.ndim].ravel().tolist())
        affine.SetTranslation(matrix[: part.ndim, part.ndim].tolist())
        return affine
    if isinstance(part, BSpline):
        ndim = part.lattice.ndim
        origin, size, mesh = itk_domain(part.lattice, part.order)
        direction = part.lattice.direction[0].double().cpu().numpy().ravel().tolist()
        spline = sitk.BSplineTransform(ndim, part.order)
        spline.SetTransformDomainOrigin(origin)
        spline.SetTransformDomainPhysicalDimensions(size)
        spline.SetTransformDomainDirection(direction)
        spline.SetTransformDomainMeshSize(mesh)
        spline.SetParameters(_only(part.coefficients).detach().double().cpu().flatten().tolist())
        return spline
    assert isinstance(part, (Displacement, Velocity))  # noqa: S101 - what KNOWN lists
    field = to_sitk(_only(part.displacement(part.grid)), part.grid, vector=True)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _only(batch: Tensor) -> Tensor:
    if batch.shape[0] != 1:
        raise InputError(f"to_itk writes one transform, got a batch of {batch.shape[0]}; take one of them.")
    return batch[0]


def from_itk(transform: sitk.Transform) -> Transform:
    """Convert an ITK transform: linear maps, displacement fields, B-splines, and composites of them.

    Raises:
        InputTypeError: The class is not supported.
    """
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        parts = [transform.GetNthTransform(i) for i in range(transform.GetNumberOfTransforms())]
        if not parts:
            return Affine.identity(transform.GetDimension())
        if _contains_itself(transform):
            return _linear(transform)
        return chain(*reversed([from_itk(part) for part in parts]))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return _from_field(transform.GetDisplacementField())
    if isinstance(transform, sitk.BSplineTransform):
        images = transform.GetCoefficientImages()
        coefficients = np.stack([sitk.GetArrayFromImage(image) for image in images]).astype(np.float32)
        return BSpline(torch.from_numpy(coefficients)[None], grid_from_sitk(images[0]), transform.GetOrder())
    return _linear(transform)


def _contains_itself(transform: sitk.Transform) -> bool:
    """Return whether SimpleITK does not know the class.

    Such a transform, as ANTs' and c3d's MatrixOffsetTransformBase, looks like a composite of itself without end.
    """
    for _ in range(NESTED):
        transform = transform.Downcast()
        if not isinstance(transform, sitk.CompositeTransform) or transform.GetNumberOfTransforms() != 1:
            return False
        transform = transform.GetNthTransform(0)
    return True


def _linear(transform: sitk.Transform) -> Affine:
    """Convert a linear transform of any class, by what it does to points."""
    if not transform.IsLinear():
        raise InputTypeError(
            f"ITK's {transform.GetName()} is not supported; convert it with sitk.TransformToDisplacementField."
        )
    ndim = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * ndim))
    columns = [np.array(transform.TransformPoint(list(axis))) - origin for axis in np.eye(ndim)]
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim], matrix[:ndim, ndim] = np.stack(columns, axis=1), origin
    return Affine(torch.from_numpy(matrix).float())


def _from_field(image: sitk.Image) -> Displacement:
    array = np.moveaxis(sitk.GetArrayFromImage(image).astype(np.float32), -1, 0)
    return Displacement(torch.from_numpy(np.ascontiguousarray(array))[None], grid_from_sitk(image))


def write_itk(transform: Transform, grid: Grid, path: PathLike) -> None:
    """Write a transform for ITK, ANTs and 3D Slicer; the suffix sets the format.

    ``.h5``, ``.tfm`` and ``.txt`` hold a composite transform, ``.mat`` one linear map (ANTs' affine), and an image file
    a displacement field in mm.

    Args:
        transform: From the fixed to the moving space.
        grid: The fixed grid.
        path: The file; it appears only when it is complete.

    Raises:
        InputError: The transform is a batch of several, deforms and the suffix is ``.mat``, or cannot be written.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> write_itk(learnreg.Affine.translation([1.0, 2.0, 3.0]), grid, "shift.tfm")
        >>> read_itk("shift.tfm")(torch.zeros(1, 1, 3))
        tensor([[[1., 2., 3.]]])
    """
    suffix = Path(path).suffix
    converted: list[sitk.Transform] = []
    if suffix in (".h5", ".tfm", ".txt"):
        converted.append(to_itk(transform, grid))
    elif suffix == ".mat":
        parts = (transform if isinstance(transform, Sampled) else Sampled(transform, grid)).parts()
        linear = [part for part in parts if isinstance(part, Affine)]
        if len(linear) < len(parts):
            raise InputError("A .mat file holds one linear transform, this one deforms; write .h5 or .nii.gz.")
        converted.append(_part_to_itk(reduce(Affine.then, linear)))
    if converted:
        write_with_itk(path, lambda part: _write_and_compare(converted, part, path))
        return
    write_sitk(to_sitk(transform.displacement(grid)[0], grid, vector=True), path)


def _write_and_compare(converted: list[sitk.Transform], part: str, path: PathLike) -> None:
    """Write the one transform of a list, which is emptied: a field takes much memory, and reading it takes more."""
    transform = converted.pop()
    expected = _checksums(transform)
    if part.endswith(".h5"):  # on a full disk, HDF5 ends the process when Python exits
        reserve(part, HEADER + _size(transform))
    sitk.WriteTransform(transform, part)
    del transform
    if _checksums(sitk.ReadTransform(part)) != expected:
        raise InputError(f"{path} was not written completely; check the space on the disk.")


def _size(transform: sitk.Transform) -> int:
    """Return the size of the parts of a transform in a HDF5 file, in bytes: float64 numbers and their names."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        return sum(_size(transform.GetNthTransform(i)) for i in range(transform.GetNumberOfTransforms()))
    return 8 * int(transform.GetNumberOfParameters()) + 2048


def _checksums(transform: sitk.Transform) -> list[int]:
    """Return a checksum of the numbers of each part of a transform."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        count = transform.GetNumberOfTransforms()
        return [found for i in range(count) for found in _checksums(transform.GetNthTransform(i))]
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return [zlib.crc32(sitk.GetArrayViewFromImage(transform.GetDisplacementField()).data)]
    return [zlib.crc32(np.array(transform.GetParameters()).data)]


def read_itk(path: PathLike, *, ndim: int | None = None) -> Transform:
    """Read a transform file of ITK or ANTs, or a displacement field image in mm.

    Args:
        path: The file.
        ndim: Dimension of the images that it is for; ``None`` takes any.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not a transform, or has another dimension.
    """
    file = Path(path)
    if not file.exists():
        raise MissingFileError(f"No such transform: {file}. Check the path.")
    if file.is_dir():
        raise InputError(f"{file} is a folder; give the file of a transform.")
    if file.suffix in (".h5", ".hdf5"):
        _check_hdf5(file)
    if file.name.endswith((".nii", ".nii.gz")):
        check_finite(file)
    try:
        if file.suffix in (".h5", ".tfm", ".txt", ".mat", ".hdf5", ".xfm"):
            stored = sitk.ReadTransform(str(file))
        else:
            stored = sitk.ReadImage(str(file), sitk.sitkVectorFloat64)
    except RuntimeError as error:
        raise InputError(
            f"{file} cannot be read as a transform: {itk_reason(error)}. Give .h5, .tfm, .mat or a displacement image."
        ) from error
    if ndim is not None and stored.GetDimension() != ndim:
        raise InputError(
            f"The transform {file} is {stored.GetDimension()}-D, but the images are {ndim}-D; give a {ndim}-D one."
        )
    if isinstance(stored, sitk.Transform):
        return _checked(from_itk(stored), file)
    if stored.GetNumberOfComponentsPerPixel() != stored.GetDimension():
        raise InputError(
            f"{file} has {stored.GetNumberOfComponentsPerPixel()} value(s) per voxel; a displacement image has "
            f"{stored.GetDimension()}, in mm. Give another file."
        )
    return _checked(_from_field(stored), file)


def _check_hdf5(file: Path) -> None:
    """Compare the size of an HDF5 file to that in its first block: the library prints many lines on a damaged file."""
    with file.open("rb") as opened:
        begin = opened.read(48)
    if begin[:8] != HDF5 or len(begin) < 48:
        raise InputError(
            f"{file} is not an HDF5 file; give a transform that ITK, ANTs or learnreg wrote, or another suffix."
        )
    at = 40 if begin[8] < 2 else 28  # by version of the block
    stated = int.from_bytes(begin[at : at + 8], "little")
    if stated > file.stat().st_size:
        raise InputError(f"{file} is damaged: it has {file.stat().st_size} of {stated} bytes. Copy or export it again.")


def _checked(transform: Transform, file: Path) -> Transform:
    """Check that a transform has finite numbers, and that its linear parts can be inverted."""
    for part in Sampled(transform, Grid.regular((2,) * transform.ndim)).parts():
        if isinstance(part, Affine):
            finite = bool(part.matrix.isfinite().all())
            if finite and float(torch.linalg.det(part.matrix.double()).abs().min()) < 1e-12:
                raise InputError(f"{file} is singular: it maps an image into a plane or a point. Check its matrix.")
        else:
            finite = all(bool(field.isfinite().all()) for field, _ in part.fields()) and _finite_spline(part)
        if not finite:
            raise InputError(f"{file} has NaN or infinite numbers; export it again, or compute it again.")
    return transform


def _finite_spline(part: Transform) -> bool:
    return not isinstance(part, BSpline) or bool(part.coefficients.isfinite().all())
