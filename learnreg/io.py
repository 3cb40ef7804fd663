"""Read and write images, label maps and DICOM series with SimpleITK."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.typing import PathLike, Tensor

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")


def read_image(path: PathLike, *, labels: PathLike | None = None, mask: PathLike | None = None) -> Image:
    """Read one scalar image, 2-D or 3-D, from a file or a DICOM folder.

    Args:
        path: A file that SimpleITK reads, or a folder with one DICOM series.
        labels: Segmentation on the same grid.
        mask: Image on the same grid, non-zero where the image counts.

    Returns:
        Float32 intensities ``(1, 1, *shape)`` as stored, without normalization.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not an image, is truncated, 4-D or in color, or contains NaN; or labels or mask do not
            fit.

    Example:
        >>> grid = learnreg.Grid.regular((4, 5, 6), spacing=2.0)
        >>> write_image(torch.ones(1, 4, 5, 6), grid, "image.nii.gz")
        >>> read_image("image.nii.gz").data.shape
        torch.Size([1, 1, 4, 5, 6])
    """
    image = image_from_sitk(read_sitk(path), name=str(path))
    _check_nifti(Path(path))
    attached: dict[str, Tensor] = {}
    for name, beside in (("labels", labels), ("mask", mask)):
        if beside is None:
            continue
        other = image_from_sitk(read_sitk(beside), name=str(beside), check_values=False)
        _check_nifti(Path(beside), finite=False)
        if other.grid.shape != image.grid.shape:
            raise InputError(
                f"{name} {beside} have shape {other.grid.shape} but the image {path} has {image.grid.shape}; "
                f"resample them onto the image's grid first."
            )
        if not other.grid.matches(image.grid, tolerance=0.1):
            raise InputError(
                f"{name} {beside} and image {path} lie in different places: {other.grid} and {image.grid}; "
                f"copy the image's header to the {name}, or resample them."
            )
        attached[name] = other.data.round().long() if name == "labels" else (other.data != 0).float()
    return Image(image.data, image.grid, attached.get("mask"), attached.get("labels"))


def read_sitk(path: PathLike) -> sitk.Image:
    """Read a SimpleITK image from a file or a DICOM folder.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not an image.
    """
    file = Path(path)
    if not file.exists():
        raise MissingFileError(f"No such image: {file}. Check the path.")
    try:
        if file.is_dir():
            return _read_dicom(file)
        return sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file} cannot be read as an image; give one of {', '.join(SUFFIXES)}.") from error


def _check_nifti(file: Path, *, finite: bool = True) -> None:
    """Raise an error for a truncated NIfTI file and for NaN; ITK's reader replaces both by zeros without a warning."""
    if not file.name.endswith((".nii", ".nii.gz")):
        return
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        stored = nibabel.load(file)  # type: ignore[attr-defined]
        values = np.asarray(stored.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise InputError(f"{file} is damaged: {_on_one_line(error)}. Copy or export it again.") from error
    if finite and np.issubdtype(stored.get_data_dtype(), np.floating):
        _check_finite(values, str(file))


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_finite(array: NDArray[Any], name: str) -> None:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(
            f"{name} has {bad} NaN or infinite values; replace them first, for example with numpy.nan_to_num."
        )


def _read_dicom(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError(
            f"The folder {folder} holds {len(series)} DICOM series; give a folder with exactly one, or a file."
        )
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader.Execute()


def image_from_sitk(image: sitk.Image, *, name: str = "image", check_values: bool = True) -> Image:
    """Convert a SimpleITK image to an :class:`Image`, ``(1, 1, *shape)`` float32.

    Args:
        image: Scalar, 2-D or 3-D.
        name: Name in error messages.
        check_values: Raise an error for NaN and infinite values.

    Raises:
        InputError: The image is not a scalar 2-D or 3-D image, or has values that are not finite.
    """
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{name} has {image.GetNumberOfComponentsPerPixel()} values a pixel (color or vectors); "
            "convert it to one gray channel first."
        )
    if image.GetDimension() not in (2, 3):
        raise InputError(
            f"{name} is {image.GetDimension()}-D; give one 2-D or 3-D image, for example one time point of it."
        )
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if check_values:
        _check_finite(array, name)
    return Image(torch.from_numpy(array)[None, None], grid_from_sitk(image))


def grid_from_sitk(image: sitk.Image) -> Grid:
    """Return the grid of a SimpleITK image."""
    ndim = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(ndim, ndim)
    return Grid.regular(image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), torch.from_numpy(direction))


def to_sitk(values: Tensor, grid: Grid, *, vector: bool = False) -> sitk.Image:
    """Convert values to a SimpleITK image on a grid.

    Args:
        values: ``(C, *grid.shape)`` or ``(*grid.shape)``.
        grid: Where the values lie.
        vector: Store the channels as vectors; otherwise the first channel is stored.
    """
    array = values.detach().cpu().numpy()
    if vector:
        array = np.moveaxis(array, 0, -1)
    elif array.ndim == grid.ndim + 1:
        array = array[0]
    image = sitk.GetImageFromArray(array, isVector=vector)
    place(image, grid)
    return image


def place(image: sitk.Image, grid: Grid) -> None:
    """Set spacing, origin and direction of a SimpleITK image; the direction cosines are made exactly orthonormal."""
    affine = grid.affine[0].detach().double().cpu()
    linear = affine[: grid.ndim, : grid.ndim]
    spacing = linear.norm(dim=0)
    u, _, vh = torch.linalg.svd(linear / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((u @ vh).flatten().tolist())
    image.SetOrigin(affine[: grid.ndim, grid.ndim].tolist())


def write_image(values: Tensor, grid: Grid, path: PathLike) -> None:
    """Write values as an image; the file appears only when it is complete.

    Args:
        values: ``(C, *grid.shape)``; the first channel is written.
        grid: Where the values lie.
        path: The suffix sets the format.

    Raises:
        InputError: The file cannot be written.
    """
    image = to_sitk(values, grid)
    write_with_itk(path, lambda part: sitk.WriteImage(image, part, useCompression=True))


def write_with_itk(path: PathLike, write: Callable[[str], object]) -> None:
    """Call :func:`write_atomically` for a writer of SimpleITK, which reports all errors as ``RuntimeError``.

    Raises:
        InputError: The file cannot be written, or ITK has no writer for its suffix or for these values.
    """
    try:
        write_atomically(path, write)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("ERROR: ")[2].rstrip(". ")
        if "ImageIO" in reason:  # ITK would name the temporary file
            reason = "no format has this suffix"
        raise InputError(
            f"{path} cannot be written: {reason}. Give another suffix, such as .nii.gz for images, or another folder."
        ) from error


def write_atomically(path: PathLike, write: Callable[[str], object]) -> None:
    """Call ``write`` with a temporary name of the same suffix, then rename, so that no file is half-written.

    Raises:
        InputError: The file cannot be written: the folder is missing or protected, or the disk is full.
    """
    file = Path(path)
    suffix = "".join(file.suffixes[-2:]) if file.name.endswith(".gz") else file.suffix
    part: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=suffix, prefix=".part-", dir=file.parent)
        os.close(handle)
        part = Path(name)
        write(name)
        part.chmod(0o644)
        part.replace(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}. Choose another output.") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
