"""Read headers, and check the geometry that those of DICOM series and NIfTI files state.

ITK guesses where a header contradicts itself.
"""

from __future__ import annotations

import locale
import math
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from learnreg.errors import InputError
from learnreg.typing import PathLike

P = ParamSpec("P")
R = TypeVar("R")
POSITION, ORIENTATION = "0020|0032", "0020|0037"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from NIfTI's RAS
UNEVEN, TILT = 0.02, 0.5  # largest difference of a gap, as a share of it; largest tilt, degrees
APART = 0.1  # mm; affines that agree to this are the same
SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
FREESURFER = (".mgz", ".mgh")
READABLE = SUFFIXES + FREESURFER
HEADER = 2**16  # bytes in which the header of a MetaImage ends
METAIMAGE = {  # bytes of a value
    b"MET_CHAR": 1,
    b"MET_UCHAR": 1,
    b"MET_SHORT": 2,
    b"MET_USHORT": 2,
    b"MET_INT": 4,
    b"MET_UINT": 4,
    b"MET_FLOAT": 4,
    b"MET_LONG_LONG": 8,
    b"MET_ULONG_LONG": 8,
    b"MET_DOUBLE": 8,
}


def keeping_locale(function: Callable[P, R]) -> Callable[P, R]:
    """Restore the locale after a function: GDCM, which reads DICOM for ITK, leaves that of C.

    Text that is read afterwards without an encoding, as torch and other libraries do, would be taken for ASCII.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = locale.setlocale(locale.LC_ALL)
        try:
            return function(*args, **kwargs)
        finally:
            locale.setlocale(locale.LC_ALL, before)

    return run


def without_itk_warnings(function: Callable[P, R]) -> Callable[P, R]:
    """Hide the warnings that ITK prints about a file: what is wrong with it becomes an error or warning of learnreg."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            return function(*args, **kwargs)
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(before)

    return run


@without_itk_warnings
@keeping_locale
def read_header(path: PathLike) -> sitk.ImageFileReader:
    """Read the header of an image file, or of the first file of a DICOM folder, without its values.

    Returns:
        A reader that tells size, spacing, components and tags.

    Raises:
        InputError: The file is not an image.
    """
    file = Path(path)
    reader = sitk.ImageFileReader()
    try:
        if file.is_dir():
            file = Path(next(iter(series_files(file)), file))
        check_whole(file)
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    return reader


@keeping_locale
def series_files(folder: PathLike, series: str = "") -> Sequence[str]:
    """Return the files of a DICOM series of a folder, by default the first one, in the order of its slices."""
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)  # type: ignore[no-any-return]


def check_whole(file: Path) -> None:
    """Check what ITK would replace in silence, or print about: the geometry of a NIfTI file, the size of a ``.mha``.

    Raises:
        InputError: A number of the geometry is not finite or a voxel has no size, or values are missing.
    """
    name = file.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        _check_nifti(file)
    elif name.endswith(".mha"):
        _check_metaimage(file)


def _check_nifti(file: Path) -> None:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.openers import ImageOpener

    try:
        kind = type(nibabel.load(file).header)  # type: ignore[attr-defined]
        with ImageOpener(file) as opened:  # without the repairs of nibabel
            header = kind.from_fileobj(opened, check=False)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        return  # reading it tells more
    if header["sform_code"] > 0:
        linear = np.array([header["srow_x"], header["srow_y"], header["srow_z"]], float)
        if not (np.isfinite(linear).all() and np.linalg.norm(linear[:, :3], axis=0).min() > 0):
            raise InputError(f"{file}: the sform of the header is not a valid affine; correct the header.")
        return
    sizes = np.array(header["pixdim"][1 : 1 + min(3, max(1, int(header["dim"][0])))], float)
    if not (np.isfinite(sizes).all() and sizes.all()):
        found = " x ".join(f"{size:g}" for size in sizes)
        raise InputError(f"{file}: the voxel size of the header is {found} mm; correct the header.")


def check_finite(file: Path) -> None:
    """Check that the values of a NIfTI file are finite, which ITK replaces by zeros.

    Raises:
        InputError: They are not.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        values = np.asarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is damaged: {reason}. Copy or export it again.") from error
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise InputError(f"{file} has NaN or infinite numbers; export it again, or compute it again.")


def _check_metaimage(file: Path) -> None:
    """Compare the size of the values that a MetaImage states to that of the file, where both are in one file."""
    content = file.read_bytes()[:HEADER]
    begin, _, rest = content.partition(b"ElementDataFile")
    fields = dict(re.findall(rb"^(\w+) *= *(.*?) *$", begin, re.MULTILINE))
    for name in (b"Offset", b"Origin", b"Position", b"ElementSpacing", b"TransformMatrix"):
        words = fields.get(name, b"0").lower().split()
        if any(word.lstrip(b"+-") in (b"nan", b"inf", b"infinity") for word in words):
            raise InputError(f"{file}: {name.decode()} of the header is not finite; correct the header.")
    place, end, _ = rest.partition(b"\n")
    kind = fields.get(b"ElementType", b"").removesuffix(b"_ARRAY")
    if not end or place.strip(b" =\r") != b"LOCAL" or kind not in METAIMAGE:
        return
    try:
        channels = int(fields.get(b"ElementNumberOfChannels", b"1"))
        stated = METAIMAGE[kind] * channels * math.prod(map(int, fields[b"DimSize"].split()))
        if fields.get(b"CompressedData", b"").lower() == b"true":
            stated = int(fields.get(b"CompressedDataSize", b"0"))
    except (KeyError, ValueError):
        return  # ITK says what is wrong
    held = file.stat().st_size - len(begin) - len(b"ElementDataFile") - len(place) - len(end)
    if held < stated:
        raise InputError(f"{file} is damaged: it holds {held} of {stated} bytes of values. Copy or export it again.")


def unreadable(path: PathLike, error: RuntimeError) -> InputError:
    """Return the error for a file that ITK cannot read."""
    formats = ", ".join(READABLE)
    return InputError(f"{path} cannot be read as an image: {itk_reason(error)}. Formats that can be read: {formats}.")


def itk_reason(error: RuntimeError) -> str:
    """Return what ITK says went wrong, on one line, without the place in its code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].rpartition("ERROR: ")[2].rpartition("): ")[2] if lines else type(error).__name__
    if "ImageIO reader" in reason:
        return "the content is of no known image format"
    return reason.rstrip(". ")


def check_series(files: Sequence[str], folder: Path) -> None:
    """Check that the slices of a DICOM series form a box: parallel, evenly spaced, one per position, not sheared.

    Args:
        files: Files of the series, in any order.
        folder: For error messages.

    Raises:
        InputError: They do not; the message says where.
    """
    headers = [_slice_header(file) for file in files]
    known = [header for header in headers if header is not None]
    if len(files) < 2 or not known:
        return
    if len(known) < len(files):
        raise InputError(f"{folder}: {len(files) - len(known)} of {len(files)} DICOM files have no slice position.")
    positions, orientations = (np.array(part) for part in zip(*known, strict=True))
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(f"{folder}: the slices of the DICOM series are not parallel; give a folder with one stack.")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    along = positions @ normal
    order = np.argsort(along)
    gaps = np.diff(along[order])
    typical = float(np.median(gaps))
    if gaps.min() < 0.01 * max(typical, gaps.max()):
        different = int((gaps >= 0.01 * gaps.max()).sum()) + 1
        raise InputError(
            f"{folder}: the DICOM series has {len(files)} images at {different} positions, such as several time points "
            "or echoes; give a folder with one image per position."
        )
    if np.abs(gaps - typical).max() > UNEVEN * typical:
        widest = int(gaps.argmax())
        raise InputError(
            f"{folder}: the slices of the DICOM series are not evenly spaced: {gaps.min():.2f} to {gaps.max():.2f} mm "
            f"apart, the widest gap after slice {widest + 1} of {len(files)}. Add the missing slices, or resample the "
            "series with dcm2niix."
        )
    shift = positions[order[-1]] - positions[order[0]]
    tilt = float(np.degrees(np.arccos(np.clip(shift @ normal / np.linalg.norm(shift), -1, 1))))
    if tilt > TILT:
        raise InputError(
            f"{folder}: the DICOM series is sheared: the gantry was tilted by {tilt:.1f} degrees. Convert it with "
            "dcm2niix, which writes a corrected volume (*_Tilt)."
        )


def _slice_header(file: str) -> tuple[list[float], list[float]] | None:
    reader = read_header(file)
    values = []
    for tag, count in ((POSITION, 3), (ORIENTATION, 6)):
        if not reader.HasMetaDataKey(tag):
            return None
        text = reader.GetMetaData(tag).strip().split("\\")
        if len(text) != count:
            return None
        values.append([float(value) for value in text])
    return values[0], values[1]


def affine_in_lps(affine: NDArray[np.float64], shape: Sequence[int], file: Path) -> NDArray[np.float64]:
    """Convert an affine of nibabel, and make its direction cosines orthonormal.

    Args:
        affine: ``(4, 4)``, voxel index to mm RAS.
        shape: Number of samples along ``(x, y, z)``.
        file: For error messages.

    Returns:
        ``(4, 4)``, voxel index to mm LPS.

    Raises:
        InputError: The affine is not finite, or sheared, so that the voxels are no boxes.
    """
    placed: NDArray[np.float64] = LPS @ _orthonormal(affine, _corner(shape), file)
    return placed


def _corner(shape: Sequence[int]) -> NDArray[np.float64]:
    return np.array([*(n - 1 for n in shape), *[0] * (3 - len(shape)), 1.0])


def nifti_geometry(file: Path, shape: Sequence[int]) -> NDArray[np.float64] | None:
    """Return the affine of a NIfTI file where ITK would read another one than FSL, SPM, FreeSurfer and nibabel.

    It is that of the sform, the choice of these programs; a warning says so. Rounded direction cosines are
    made orthonormal.

    Args:
        file: A ``.nii`` or ``.nii.gz``.
        shape: Number of samples along ``(x, y, z)``.

    Returns:
        ``(4, 4)``, voxel index to mm LPS; ``None`` if what ITK reads is right.

    Raises:
        InputError: The affine is sheared, so that the voxels are no boxes.
    """
    import nibabel

    header = nibabel.load(file).header  # type: ignore[attr-defined]
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not sform_code:
        return None
    corner = _corner(shape)
    placed = affine_in_lps(sform, shape, file)
    if qform_code:
        apart = max(float(np.linalg.norm((sform - qform) @ at)) for at in (corner, np.array([0.0, 0.0, 0.0, 1.0])))
        if apart > max(APART, 0.1 * float(np.linalg.norm(sform[:3, 0]))):
            warnings.warn(
                f"{file}: sform and qform of the header are {apart:.1f} mm apart; the sform is used, as by nibabel, "
                "FSL and SPM.",
                stacklevel=2,
            )
    return placed


def _orthonormal(affine: NDArray[np.float64], corner: NDArray[np.float64], file: Path) -> NDArray[np.float64]:
    """Replace direction cosines by the nearest orthonormal ones."""
    linear = affine[:3, :3].astype(np.float64)
    spacing = np.linalg.norm(linear, axis=0)
    if not (np.isfinite(affine).all() and spacing.min() > 0):
        raise InputError(f"{file}: the sform of the header is not a valid affine; correct the header.")
    left, _, right = np.linalg.svd(linear / spacing)
    rectangular = affine.astype(np.float64).copy()
    rectangular[:3, :3] = (left @ right) * spacing
    moved = float(np.linalg.norm((rectangular - affine) @ corner))
    if moved > max(5 * APART, 0.5 * float(spacing.min())):
        raise InputError(
            f"{file}: the affine of the header is sheared (rectangular voxels would move a corner by {moved:.1f} mm). "
            "Resample the image onto a rectangular grid first, for example with mri_convert or nilearn's resample_img."
        )
    return rectangular
