"""``learnreg apply``: resample an image or map points through saved transforms."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import SimpleITK as sitk

from learnreg.apps.output import recorded_warnings
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
from learnreg.transforms import Transform, chain
from learnreg.transforms.files import TransformFormat, format_of, read_transform
from learnreg.transforms.inverse import inverse_of
from learnreg.warping import warp
from learnreg.writing import check_output

FEW = 64  # distinct integers of an image that looks like a segmentation


def run(options: argparse.Namespace) -> None:
    """Read, resample or map, write; show warnings about headers."""
    with recorded_warnings():
        if options.points:
            map_points(options)
        else:
            resample(options)
    print(f"Wrote {options.output}")


def read_chain(
    files: Sequence[str],
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


def _check_independent(files: Sequence[str], format: TransformFormat | None) -> None:
    for file in files:
        found = format if format is not None or not Path(file).exists() else format_of(file)
        if found is not None and found.startswith(("fsl", "learn2reg")):
            raise InputError(
                f"{file}: coordinates of {found} depend on its own two images; convert it to .h5 with learnreg convert "
                "before it is composed."
            )


def map_points(options: argparse.Namespace) -> None:
    """Write the mapped points."""
    if options.labels or options.fill is not None or options.interpolation:
        raise InputError("--labels, --fill and --interpolation are for images; leave them out with --points.")
    check_output(options.output, overwrite=options.overwrite, suffixes=(".csv",))
    if options.reference is None and in_voxels(options.points):
        raise InputError(f"{options.points} gives voxels, not mm; name their image with --reference.")
    own = read_image(options.reference).grid if options.reference else None
    other = _grid_or_none(getattr(options, "moving", None))
    fixed, moving = (other, own) if options.inverse else (own, other)
    form = getattr(options, "from_format", None)
    transform = read_chain(options.inputs, inverse=options.inverse, format=form, fixed=fixed, moving=moving)
    given = read_named_landmarks(options.points, own or Grid.regular((2,) * transform.ndim))
    write_landmarks(transform(given.points), options.output, names=given.names)


def _grid_or_none(file: str | None) -> Grid | None:
    return None if file is None else read_image(file).grid


def resample(options: argparse.Namespace) -> None:
    """Write the resampled image or segmentation."""
    *transforms, file = options.inputs
    if not transforms:
        raise InputError(f"Give one or more transforms and then the image to resample; got only {file}.")
    if options.reference is None:
        raise InputError("Name the image whose grid the result has with --reference; it is the fixed image.")
    check_output(options.output, overwrite=options.overwrite)
    if options.labels and options.fill is not None:
        raise InputError("--fill is for intensities; beyond a segmentation lies label 0.")
    if not options.labels:
        check_pixels(options.output, sitk.sitkFloat32, 2)
    reference = read_image(options.reference)
    stored = read_sitk(file)
    if reference.ndim != stored.GetDimension():
        raise InputError(
            f"The reference is {reference.ndim}-D and the image {stored.GetDimension()}-D; give images of one "
            "dimension."
        )
    check_pixels(options.output, stored.GetPixelID() if options.labels else sitk.sitkFloat32, reference.ndim)
    transform = _of_images(options, transforms, reference.grid, grid_from_sitk(stored))
    if options.labels:
        labels = labels_from_sitk(stored, name=file)
        mode = cast(LabelMode, options.interpolation or "nearest")
        moved = sample_labels(labels, grid_from_sitk(stored), transform.map_grid(reference.grid), mode=mode)
        # The values stay those of the input, so they fit its pixel type.
        write_sitk(sitk.Cast(to_sitk(moved[0], reference.grid), stored.GetPixelID()), options.output)
        return
    if options.interpolation != "nearest" and looks_like_labels(stored):
        warnings.warn(f"{file} looks like a segmentation, and is interpolated; use --labels for one.", stacklevel=2)
    moving = image_from_sitk(stored, name=file)
    fill = background(moving) if options.fill is None else options.fill
    mode = cast(Mode, options.interpolation or "linear")
    write_image(warp(moving, transform, reference.grid, mode=mode, fill=fill).data[0], reference.grid, options.output)


def _of_images(options: argparse.Namespace, files: Sequence[str], reference: Grid, resampled: Grid) -> Transform:
    """Read transforms that are applied to images, which are those that the coordinates of FSL depend on."""
    fixed, moving = (resampled, reference) if options.inverse else (reference, resampled)
    form = getattr(options, "from_format", None)
    return read_chain(files, ndim=reference.ndim, inverse=options.inverse, format=form, fixed=fixed, moving=moving)


def looks_like_labels(image: sitk.Image) -> bool:
    """Return whether an image has integers of few values, of which 0 is one.

    Example:
        >>> import SimpleITK as sitk
        >>> looks_like_labels(sitk.Image([4, 4], sitk.sitkUInt8))
        True
    """
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.integer) or values.size == 0 or np.ptp(values) > np.iinfo(np.int16).max:
        return False
    least = int(values.min())
    counts = np.bincount((values.astype(np.int64) - least).ravel())
    return least >= 0 and int((values == 0).sum()) > 0 and int((counts > 0).sum()) <= FEW
