"""Read and write images, label maps and DICOM series with SimpleITK."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.headers import (
    FREESURFER,
    SUFFIXES,
    affine_in_lps,
    check_series,
    check_whole,
    itk_reason,
    keeping_locale,
    nifti_geometry,
    read_header,
    series_files,
    unreadable,
    without_itk_warnings,
)
from learnreg.image import Image
from learnreg.typing import LabelTensor, MaskTensor, PathLike, Tensor
from learnreg.writing import reserve, write_atomically

SERIES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")  # formats that hold several time points
DESCRIPTION = "0008|103e"  # of a DICOM series
GZIP = b"\x1f\x8b"  # how a compressed file begins


def read_image(
    path: PathLike, *, labels: PathLike | None = None, mask: PathLike | None = None, time: int | None = None
) -> Image:
    """Read one scalar image, 2-D or 3-D, from a file or a DICOM folder.

    Args:
        path: A file that SimpleITK reads, a ``.mgz`` of FreeSurfer, or a folder with one DICOM series; of several,
            ``FOLDER:UID`` is the one whose UID begins so.
        labels: Segmentation on the same grid.
        mask: Image on the same grid, non-zero where the image counts.
        time: Time point of a 4-D file, from 0. Labels and mask can be 4-D too, or 3-D for all time points.

    Returns:
        Float32 intensities ``(1, 1, *shape)`` as stored, without normalization. Voxels that are NaN are left out of the
        mask, and get the value of the background.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not an image, is truncated, 4-D or in color, or has infinite values or
            only NaN; or labels or mask do not fit.

    Example:
        >>> grid = learnreg.Grid.regular((4, 5, 6), spacing=2.0)
        >>> write_image(torch.ones(1, 4, 5, 6), grid, "image.nii.gz")
        >>> read_image("image.nii.gz").data.shape
        torch.Size([1, 1, 4, 5, 6])
    """
    image = image_from_sitk(read_sitk(path, time=time), name=str(path))
    attached: dict[str, Tensor] = {}
    for name, beside in (("labels", labels), ("mask", mask)):
        if beside is None:
            continue
        stored = read_sitk(beside, time=None if time is None or time_points(beside) == 1 else time)
        grid = grid_from_sitk(stored)
        if grid.shape != image.grid.shape:
            raise InputError(
                f"{name} {beside} have shape {grid.shape} but the image {path} has {image.grid.shape}; "
                f"resample them onto the image's grid first."
            )
        if not grid.matches(image.grid, tolerance=0.1):
            raise InputError(
                f"{name} {beside} and image {path} lie in different places: {grid} and {image.grid}; "
                f"copy the image's header to the {name}, or resample them."
            )
        if name == "labels":
            attached[name] = labels_from_sitk(stored, name=str(beside))
        else:
            attached[name] = _mask_from_sitk(stored, name=str(beside))
    inside = attached.get("mask", image.mask)
    if inside is not None and image.mask is not None:
        inside = inside * image.mask
        if not bool(inside.any()):
            raise InputError(f"The mask {mask} covers only voxels of {path} that are NaN; correct it, or leave it out.")
    return Image(image.data, image.grid, inside, attached.get("labels"))


def time_points(path: PathLike) -> int:
    """Return the number of time points of a file, from its header: 1 unless it is 4-D, or cannot be read."""
    file = Path(path)
    if not file.name.lower().endswith(SERIES) or file.is_dir():
        return 1
    try:
        size = read_header(file).GetSize()
    except InputError:
        return 1
    return int(size[3]) if len(size) == 4 else 1


def read_series(path: PathLike) -> list[Image]:
    """Read all time points of a 4-D file, which is read once.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file has one time point, or cannot be read.
    """
    count = time_points(path)
    if count < 2:
        if not Path(path).exists():
            raise MissingFileError(f"No such image: {path}. Check the path.")
        raise InputError(f"{path} has no time points; a series is one 4-D file, such as .nii.gz.")
    first = read_image(path, time=0)
    array = _series_values(Path(path))
    images = [first]
    for time in range(1, count):
        one = sitk.GetImageFromArray(np.ascontiguousarray(array[time]))
        place(one, first.grid)
        image = image_from_sitk(one, name=f"{path}, time point {time}")
        images.append(Image(image.data, first.grid, image.mask))
    return images


def _series_values(file: Path) -> NDArray[Any]:
    """Return the values of a 4-D file, ``(t, z, y, x)``; ITK would replace NaN by zeros."""
    if not file.name.endswith((".nii", ".nii.gz")):
        return np.asarray(sitk.GetArrayFromImage(read_sitk(file)))
    import nibabel

    try:
        return _exact(np.asarray(nibabel.load(file).dataobj)).T  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(file, error) from error


@without_itk_warnings
@keeping_locale
def read_sitk(path: PathLike, *, time: int | None = None) -> sitk.Image:
    """Read a SimpleITK image from a file or a DICOM folder.

    Args:
        path: A file that SimpleITK reads, or a folder with one DICOM series; of several, ``FOLDER:UID`` is the one
            whose UID begins so.
        time: Time point of a 4-D file, from 0; ``None`` reads the file whole.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not an image, or has no such time point.
    """
    file = Path(path)
    folder, _, series = str(path).rpartition(":")
    if not file.exists() and folder and Path(folder).is_dir():
        try:
            return _read_dicom(Path(folder), series)
        except RuntimeError as error:
            raise unreadable(file, error) from error
    if not file.exists():
        raise MissingFileError(f"No such image: {file}. Check the path.")
    if time is not None and not 0 <= time < time_points(file):
        raise InputError(f"{file} has {time_points(file)} time point(s), counted from 0; there is no {time}.")
    try:
        image = _read_any(file, time)
    except RuntimeError as error:
        raise unreadable(file, error) from error
    _check_place(image, file)
    return image


def _read_any(file: Path, time: int | None) -> sitk.Image:
    if file.is_dir():
        return _read_dicom(file)
    check_whole(file)
    if file.name.endswith((".nii", ".nii.gz")):
        return _read_nifti(file, time)
    if file.name.lower().endswith(FREESURFER):
        return _read_freesurfer(file, time)
    image = sitk.ReadImage(str(file))
    return image if time is None or image.GetDimension() == 3 else image[:, :, :, time]


def _check_place(image: sitk.Image, file: Path) -> None:
    numbers = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    if not np.isfinite(numbers).all() or min(image.GetSpacing()) <= 0:
        raise InputError(
            f"{file}: the header has a spacing of {image.GetSpacing()} and an origin of {image.GetOrigin()} mm; "
            "correct the header."
        )


def _read_nifti(file: Path, time: int | None = None) -> sitk.Image:
    """Read a NIfTI file, or one time point of it, that is whole, where its sform says.

    ITK replaces what a truncated file lacks, and NaN, by zeros; and it chooses between sform and qform in silence.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        stored = nibabel.load(file)  # type: ignore[attr-defined]
        values = np.asarray(stored.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise _damaged(file, error) from error
    if values.dtype.names:
        raise _not_scalar(file, len(values.dtype.names))
    if time is not None and values.ndim == 4:
        values = np.ascontiguousarray(values[..., time])
    placed = nifti_geometry(file, values.shape) if values.ndim in (2, 3) else None
    if placed is None and values.ndim in (2, 3) and isinstance(stored, nibabel.Nifti2Image):  # ITK does not read it
        placed = affine_in_lps(stored.affine, values.shape, file)
    if placed is None:
        image = sitk.ReadImage(str(file))
        if time is not None and image.GetDimension() == 4:
            image = image[:, :, :, time]
    else:  # ITK refuses direction cosines that are rounded
        if values.ndim == 2 and np.abs(placed[2, :2]).max() > 1e-3 * np.abs(placed[:2, :2]).max():
            return sitk.ReadImage(str(file))  # an oblique plane, which has no 2-D geometry
        return _placed(values, placed)
    if values.ndim in (2, 3) and np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
        whole = sitk.GetImageFromArray(_exact(values).T)
        whole.CopyInformation(image)
        return whole
    return image


def _read_freesurfer(file: Path, time: int | None = None) -> sitk.Image:
    """Read a ``.mgz`` or ``.mgh`` file; nibabel would leave it open."""
    import nibabel
    from nibabel.freesurfer.mghformat import MGHError
    from nibabel.spatialimages import HeaderDataError

    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        stored = nibabel.MGHImage.from_bytes(content)
        values = np.asarray(stored.dataobj)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error, MGHError, HeaderDataError) as error:
        raise _damaged(file, error) from error
    if time is not None and values.ndim == 4:
        values = np.ascontiguousarray(values[..., time])
    if values.ndim != 3:
        raise InputError(f"{file} is {values.ndim}-D; give one time point, for example by mri_convert --frame 0.")
    return _placed(values, affine_in_lps(stored.affine, values.shape, file))


def _damaged(file: Path, error: BaseException) -> InputError:
    return InputError(f"{file} is damaged: {_on_one_line(error)}. Copy or export it again.")


def _placed(values: NDArray[Any], affine: NDArray[np.float64]) -> sitk.Image:
    """Return values ``(x, y, z)`` as an image with an affine from voxel index to mm LPS."""
    image = sitk.GetImageFromArray(_exact(values).T)
    linear = affine[: values.ndim, : values.ndim]
    spacing = np.linalg.norm(linear, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((linear / spacing).ravel().tolist())
    image.SetOrigin(affine[: values.ndim, 3].tolist())
    return image


def _exact(values: NDArray[Any]) -> NDArray[Any]:
    """Return values in a type that SimpleITK has, without loss for integers."""
    if values.dtype.byteorder not in "=|":
        values = values.astype(values.dtype.newbyteorder("="))
    return values.astype(np.float32) if values.dtype in (np.float16, np.longdouble) else values


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_known(array: NDArray[Any], name: str) -> None:
    infinite = int(np.isinf(array).sum())
    if infinite:
        raise InputError(f"{name} has {infinite} infinite values; replace them, for example with numpy.nan_to_num.")
    if np.isnan(array).all():
        raise InputError(f"Every value of {name} is NaN; export it again.")


def _read_dicom(folder: Path, wanted: str = "") -> sitk.Image:
    """Read the one DICOM series of a folder, or the one whose UID begins like ``wanted``."""
    reader = sitk.ImageSeriesReader()
    held = reader.GetGDCMSeriesIDs(str(folder))
    series = [one for one in held if one == wanted] or [one for one in held if one.startswith(wanted)]
    if len(series) != 1:
        of_name = f" whose UID begins with {wanted}" if wanted else ""
        listed = [f"{_described(series_files(folder, one))} {one}" for one in (series or held)]
        remedy = f"Choose one by its UID, as {folder}:UID." if held else "Give a folder with one, or a file."
        raise InputError(
            f"The folder {folder} holds {len(series)} DICOM series{of_name}{': ' if listed else ''}"
            f"{'; '.join(listed[:8])}{'; ...' if len(listed) > 8 else ''}. {remedy}"
        )
    files = series_files(folder, series[0])
    check_series(files, folder)
    reader.SetFileNames(files)
    return reader.Execute()


def _described(files: Sequence[str]) -> str:
    """Return the description, number of files and first file of a DICOM series."""
    header = read_header(files[0])
    name = header.GetMetaData(DESCRIPTION).strip() if header.HasMetaDataKey(DESCRIPTION) else ""
    return f"{name or 'unnamed'} ({len(files)} files, {Path(files[0]).name} first)"


def image_from_sitk(image: sitk.Image, *, name: str = "image") -> Image:
    """Convert a SimpleITK image to an :class:`Image`, ``(1, 1, *shape)`` float32; NaN is left out of its mask.

    Args:
        image: Scalar, 2-D or 3-D.
        name: Name in error messages.

    Raises:
        InputError: The image is not a scalar 2-D or 3-D image, has infinite values, or only NaN.
    """
    _check_scalar(image, name)
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    unknown = np.isnan(array)
    mask = None
    if not np.isfinite(array).all():
        _check_known(array, name)
        array[unknown] = min(0.0, float(array[~unknown].min()))
        mask = torch.from_numpy((~unknown).astype(np.float32))[None, None]
    return Image(torch.from_numpy(array)[None, None], grid_from_sitk(image), mask)


def labels_from_sitk(image: sitk.Image, *, name: str = "labels") -> LabelTensor:
    """Convert a SimpleITK image to labels, ``(1, 1, *shape)`` int64, exactly.

    Args:
        image: Scalar, 2-D or 3-D, with integers, in any pixel type.
        name: Name in error messages.

    Raises:
        InputError: The image is not a scalar 2-D or 3-D image, or has values that are not integers.
    """
    _check_scalar(image, name)
    array = sitk.GetArrayFromImage(image)
    if np.issubdtype(array.dtype, np.floating):
        bad = array.size - int((np.isfinite(array) & (np.abs(array - np.rint(array)) < 1e-3)).sum())
        if bad:
            raise InputError(
                f"{name} has {bad} values that are not integers; labels are integers. Give a segmentation that was "
                "resampled by nearest neighbor."
            )
        array = np.rint(array)
    return torch.from_numpy(array.astype(np.int64))[None, None]


def _mask_from_sitk(image: sitk.Image, *, name: str) -> MaskTensor:
    _check_scalar(image, name)
    inside = np.nan_to_num(sitk.GetArrayFromImage(image)) != 0
    if not inside.any():
        raise InputError(
            f"The mask {name} is empty: every value is 0 or NaN. Leave it out, or give one that covers an organ."
        )
    return torch.from_numpy(inside.astype(np.float32))[None, None]


def _check_scalar(image: sitk.Image, name: str) -> None:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise _not_scalar(name, image.GetNumberOfComponentsPerPixel())
    if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(f"{name} has complex values; convert them to real ones, such as magnitudes, first.")
    if image.GetDimension() not in (2, 3):
        raise InputError(
            f"{name} is {image.GetDimension()}-D; give one 2-D or 3-D image, for example one time point: time=0 of "
            "learnreg.read_image, or a column `time` of a table."
        )


def _not_scalar(name: PathLike, values: int) -> InputError:
    return InputError(
        f"{name} has {values} values a pixel (color or vectors); convert it to one gray channel first: "
        'python -c "import SimpleITK as s; s.WriteImage('
        "s.VectorIndexSelectionCast(s.ReadImage('FILE'), 0), 'channel0.nii.gz')\""
    )


def grid_from_sitk(image: sitk.Image) -> Grid:
    """Return the grid of a SimpleITK image."""
    ndim = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(ndim, ndim)
    return Grid.regular(image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), torch.from_numpy(direction))


def smallest_type(labels: Tensor) -> torch.dtype:
    """Return the smallest integer type of NIfTI and MetaImage that holds all labels."""
    least, greatest = int(labels.min()), int(labels.max())
    kinds = (torch.uint8, torch.int16, torch.int32)
    fits = [kind for kind in kinds if torch.iinfo(kind).min <= least and greatest <= torch.iinfo(kind).max]
    return fits[0] if fits else torch.int64


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
    write_sitk(to_sitk(values, grid), path)


def write_sitk(image: sitk.Image, path: PathLike) -> None:
    """Write a SimpleITK image, and read it back to compare; the file appears only when it is complete.

    Raises:
        InputError: The file cannot be written, or holds other values than it should, as on a full disk.
    """

    def write(part: str) -> None:
        if part.lower().endswith(".nii"):  # the library for NIfTI would add a line of its own
            reserve(part, sitk.GetArrayViewFromImage(image).nbytes)
        sitk.WriteImage(image, part, useCompression=True)
        incomplete = f"{path} was not written completely; check the space on the disk."
        try:
            stored = sitk.ReadImage(part, image.GetPixelID())
        except RuntimeError as error:
            raise InputError(incomplete) from error
        again, expected = (sitk.GetArrayViewFromImage(one).ravel() for one in (stored, image))
        lossy = part.lower().endswith((".jpg", ".jpeg"))
        if again.size != expected.size or not (lossy or np.array_equal(again, expected, equal_nan=True)):
            raise InputError(incomplete)

    write_with_itk(path, write)


@keeping_locale
def write_with_itk(path: PathLike, write: Callable[[str], object]) -> None:
    """Call :func:`write_atomically` for a writer of SimpleITK, which reports all errors as ``RuntimeError``.

    Raises:
        InputError: The file cannot be written, or ITK has no writer for its suffix or for these values.
    """
    try:
        write_atomically(path, write)
    except RuntimeError as error:
        reason = itk_reason(error)
        if "ImageIO" in reason:  # ITK would name the temporary file
            reason = "no format has this suffix"
        raise InputError(
            f"{path} cannot be written: {reason}. Give another suffix, such as .nii.gz for images, or another folder."
        ) from error


@keeping_locale
def check_pixels(path: PathLike, pixel: int, ndim: int) -> None:
    """Check that the format of a file holds a type of pixel, by a trial with a tiny image, before anything is computed.

    Args:
        path: The output.
        pixel: Pixel type of SimpleITK, such as ``sitk.sitkFloat32``.
        ndim: Dimension of the image.

    Raises:
        InputError: The format has no such pixels, or holds 2-D images only.
    """
    image = sitk.Image([2] * ndim, pixel)
    name = Path(path).name.lower()
    reason = "the format holds 2-D images only"
    with tempfile.TemporaryDirectory() as folder:
        trial = str(Path(folder) / f"trial{max((s for s in SUFFIXES if name.endswith(s)), key=len, default='')}")
        try:
            sitk.WriteImage(image, trial)
            if sitk.ReadImage(trial).GetNumberOfPixels() == image.GetNumberOfPixels():
                return
        except RuntimeError as error:
            reason = itk_reason(error)
    kind = image.GetPixelIDTypeAsString()
    raise InputError(
        f"{path} cannot hold a {ndim}-D result of {kind} pixels: {reason}. Give another suffix, such as .nii.gz."
    )
