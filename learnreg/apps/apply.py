"""``learnreg apply``: resample an image or map points through saved transforms."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
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
from learnreg.transforms.inverse import inverse_of
from learnreg.transforms.itk import read_transform
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


def read_chain(files: Sequence[str], *, ndim: int | None = None, inverse: bool = False) -> Transform:
    """Read transforms and compose them, the first applied to the points first, as by ``antsApplyTransforms``.

    Args:
        files: One or more.
        ndim: Dimension of the images; ``None`` takes any, if all have the same.
        inverse: Return the inverse of the composition.

    Raises:
        InputError: One cannot be read, or has another dimension than the images or the first one.
    """
    first = read_transform(files[0], ndim=ndim)
    whole = chain(first, *(read_transform(file, ndim=first.ndim) for file in files[1:]))
    return inverse_of(whole) if inverse else whole


def map_points(options: argparse.Namespace) -> None:
    """Write the mapped points."""
    if options.labels or options.fill is not None or options.interpolation:
        raise InputError("--labels, --fill and --interpolation are for images; leave them out with --points.")
    check_output(options.output, overwrite=options.overwrite, suffixes=(".csv",))
    transform = read_chain(options.inputs, inverse=options.inverse)
    if options.reference is None and in_voxels(options.points):
        raise InputError(f"{options.points} gives voxels, not mm; name their image with --reference.")
    grid = read_image(options.reference).grid if options.reference else Grid.regular((2,) * transform.ndim)
    given = read_named_landmarks(options.points, grid)
    if given.points.isnan().any(-1).all():
        raise InputError(f"No point of {options.points} is marked: all have NaN. Give coordinates in mm.")
    write_landmarks(transform(given.points), options.output, names=given.names)


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
            f"The reference {options.reference} is {reference.ndim}-D and the image {file} {stored.GetDimension()}-D; "
            "give images of one dimension."
        )
    check_pixels(options.output, stored.GetPixelID() if options.labels else sitk.sitkFloat32, reference.ndim)
    transform = read_chain(transforms, ndim=reference.ndim, inverse=options.inverse)
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
