"""``learnreg apply``: resample an image or map points through saved transforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from learnreg.apps.output import check_folder, recorded_warnings
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import background
from learnreg.interpolation import Mode
from learnreg.io import (
    check_pixels,
    grid_from_sitk,
    image_from_sitk,
    labels_from_sitk,
    read_image,
    read_sitk,
    to_sitk,
    write_image,
    write_sitk,
)
from learnreg.landmarks import in_voxels, read_named_landmarks, write_landmarks
from learnreg.sampling import LabelMode, sample_labels
from learnreg.transforms import Sampled, Transform, chain
from learnreg.transforms.files import TransformFormat, format_of, read_transform
from learnreg.transforms.inverse import inverse_of
from learnreg.typing import PathLike
from learnreg.warping import warp
from learnreg.writing import check_output, distinct_names, together

FEW = 64  # distinct integers of an image that looks like a segmentation


@dataclass(frozen=True)
class Resampling:
    """How images are resampled.

    Args:
        inverse: Through the inverse of the transforms.
        labels: They are segmentations.
        interpolation: ``None`` is linear, and nearest for labels.
        fill: Value beyond the image; ``None`` is its background.
        format: Of the transforms, see :func:`learnreg.transforms.read_transform`; ``None`` finds it.
    """

    inverse: bool = False
    labels: bool = False
    interpolation: Mode | None = None
    fill: float | None = None
    format: TransformFormat | None = None


def split_inputs(
    inputs: Sequence[PathLike], moving: Sequence[PathLike] | None
) -> tuple[Sequence[PathLike], Sequence[PathLike]]:
    """Return the transforms and the images of a command line: the last input is the image if none is named."""
    if moving:
        return inputs, moving
    *transforms, file = inputs
    if not transforms:
        raise InputError(f"Give one or more transforms and then the image to resample; got only {file}.")
    return transforms, [file]


def read_chain(
    files: Sequence[PathLike],
    *,
    ndim: int | None = None,
    inverse: bool = False,
    format: TransformFormat | None = None,
    fixed: Grid | None = None,
    moving: Grid | None = None,
) -> Transform:
    """Read transforms and compose them, the first applied to the points first, as by ``antsApplyTransforms``.

    Args:
        files: One or more.
        ndim: Dimension of the images; ``None`` takes any, if all have the same.
        inverse: Return the inverse of the composition.
        format: Of each file, see :func:`learnreg.transforms.read_transform`; ``None`` finds it.
        fixed: Grid of the fixed image of a single transform (before ``inverse``).
        moving: Grid of the moving image of a single transform (before ``inverse``).

    Raises:
        InputError: One cannot be read, or has another dimension than the images or the first one; or one of several is
            in coordinates that depend on its images.
    """
    if len(files) > 1 and (fixed is not None or moving is not None):
        _check_independent(files, format)  # the images of a transform in the middle are not known
        fixed = moving = None
    first = read_transform(files[0], ndim=ndim, format=format, fixed=fixed, moving=moving)
    whole = chain(first, *(read_transform(file, ndim=first.ndim, format=format) for file in files[1:]))
    return inverse_of(whole) if inverse else whole


def _check_independent(files: Sequence[PathLike], format: TransformFormat | None) -> None:
    for file in files:
        found = _format(file, format)
        if found.startswith(("fsl", "learn2reg")):
            raise InputError(
                f"{file}: coordinates of {found} depend on its own two images; convert it to .h5 with learnreg convert "
                "before it is composed."
            )


def _format(file: PathLike, format: TransformFormat | None) -> str:
    """Return the format of a file; empty if it is not known because the file is missing."""
    return format or (format_of(file) if Path(file).exists() else "")


def _reader(transforms: Sequence[PathLike], how: Resampling, grid: Grid) -> Callable[[Grid], Transform]:
    """Return a function of the image's grid that reads the transform onto ``grid``.

    A transform that depends on no image is read, inverted and evaluated once.
    """

    def read(own: Grid | None) -> Transform:
        fixed, moving = (own, grid) if how.inverse else (grid, own)
        found = read_chain(
            transforms, ndim=grid.ndim, inverse=how.inverse, format=how.format, fixed=fixed, moving=moving
        )
        return Sampled(found, grid)

    if len(transforms) == 1 and _format(transforms[0], how.format).startswith(("fsl", "learn2reg", "freesurfer")):
        return read
    once = cache(partial(read, None))
    return lambda _: once()


def map_points(
    transforms: Sequence[PathLike],
    points: PathLike,
    *,
    output: PathLike,
    reference: PathLike | None = None,
    moving: PathLike | None = None,
    inverse: bool = False,
    format: TransformFormat | None = None,
    overwrite: bool = False,
) -> None:
    """Write the mapped points; ``reference`` is their image, ``moving`` the other one, which FSL's formats need."""
    check_output(output, overwrite=overwrite, suffixes=(".csv",))
    if reference is None and in_voxels(points):
        raise InputError(f"{points} gives voxels, not mm; name their image with --reference.")
    with recorded_warnings():
        own, other = (None if file is None else read_image(file).grid for file in (reference, moving))
        fixed, there = (other, own) if inverse else (own, other)
        transform = read_chain(transforms, inverse=inverse, format=format, fixed=fixed, moving=there)
        given = read_named_landmarks(points, own or Grid.regular((2,) * transform.ndim))
        if given.points.isnan().any(-1).all():
            raise InputError(f"No point of {points} is marked: all have NaN. Give coordinates in mm.")
        write_landmarks(transform(given.points), output, names=given.names)


def resample(
    transforms: Sequence[PathLike],
    images: Sequence[PathLike],
    how: Resampling,
    *,
    reference: PathLike | None,
    output: PathLike,
    overwrite: bool = False,
) -> None:
    """Write the resampled image or segmentation, or a folder of several."""
    if reference is None:
        raise InputError("Name the image whose grid the result has with --reference; it is the fixed image.")
    if how.labels and how.fill is not None:
        raise InputError("--fill is for intensities; beyond a segmentation lies label 0.")
    if len(images) == 1:
        outputs = [Path(output)]
    else:
        check_folder(Path(output))
        names = distinct_names([Path(image) for image in images])
        outputs = [Path(output) / f"{name}.nii.gz" for name in names]
    for file in outputs:
        check_output(file, overwrite=overwrite)
        if not how.labels:
            check_pixels(file, sitk.sitkFloat32, 2)
    with recorded_warnings():
        grid = read_image(reference).grid
        read = _reader(transforms, how, grid)
        if len(images) == 1:
            _resample_one(images[0], read, how, (reference, grid), outputs[0])
            return
        with together(output) as part:
            for image, file in zip(images, outputs, strict=True):
                _resample_one(image, read, how, (reference, grid), part / file.name)


def _resample_one(
    file: PathLike,
    read: Callable[[Grid], Transform],
    how: Resampling,
    onto: tuple[PathLike, Grid],
    output: PathLike,
) -> None:
    """Resample one image onto the grid of the reference, whose file ``onto`` names."""
    reference, grid = onto
    stored = read_sitk(file)
    if grid.ndim != stored.GetDimension():
        raise InputError(
            f"The reference {reference} is {grid.ndim}-D and the image {file} {stored.GetDimension()}-D; "
            "give images of one dimension."
        )
    check_pixels(output, stored.GetPixelID() if how.labels else sitk.sitkFloat32, grid.ndim)
    own = grid_from_sitk(stored)
    transform = read(own)
    if how.labels:
        labels = labels_from_sitk(stored, name=str(file))
        mode: LabelMode = how.interpolation or "nearest"
        moved = sample_labels(labels, own, transform.map_grid(grid), mode=mode)
        # The values stay those of the input, so they fit its pixel type.
        write_sitk(sitk.Cast(to_sitk(moved[0], grid), stored.GetPixelID()), output)
        return
    if how.interpolation != "nearest" and looks_like_labels(stored):
        warnings.warn(f"{file} looks like a segmentation, and is interpolated; use --labels for one.", stacklevel=2)
    moving = image_from_sitk(stored, name=str(file))
    fill = background(moving) if how.fill is None else how.fill
    warped = warp(moving, transform, grid, mode=how.interpolation or "linear", fill=fill)
    write_image(warped.data[0], grid, output)


def looks_like_labels(image: sitk.Image) -> bool:
    """Return whether an image has integers of few values, of which 0 is one. An image of zeros is no segmentation.

    Example:
        >>> import SimpleITK as sitk
        >>> [looks_like_labels(sitk.GetImageFromArray(np.array([[0, 3]], np.uint8) * k)) for k in (0, 1)]
        [False, True]
    """
    values = sitk.GetArrayViewFromImage(image)
    return np.issubdtype(values.dtype, np.integer) and are_few_integers(values)


def are_few_integers(values: NDArray[Any]) -> bool:
    """Return whether values are integers from 0, of 2 to 64 kinds, whatever type stores them.

    Example:
        >>> [are_few_integers(values) for values in (np.array([0.0, 2.0]), np.array([0.0, 0.5]), np.arange(99))]
        [True, False, False]
    """
    if values.size == 0 or values.min() != 0 or not 0 < values.max() <= np.iinfo(np.int16).max:
        return False
    whole = values.astype(np.int64).ravel()
    return bool((whole == values.ravel()).all()) and int((np.bincount(whole) > 0).sum()) <= FEW
