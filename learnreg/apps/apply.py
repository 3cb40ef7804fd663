"""``learnreg apply``: resample an image or a segmentation through a saved transform."""

from __future__ import annotations

import argparse

import SimpleITK as sitk

from learnreg.apps.output import recorded_warnings
from learnreg.errors import InputError
from learnreg.image import background
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
from learnreg.sampling import sample_labels
from learnreg.transforms.itk import read_transform
from learnreg.warping import warp
from learnreg.writing import check_output


def run(options: argparse.Namespace) -> None:
    """Read, resample, write; show warnings about headers."""
    with recorded_warnings():
        resample(options)
    print(f"Wrote {options.output}")


def resample(options: argparse.Namespace) -> None:
    """Write the resampled image or segmentation."""
    check_output(options.output, overwrite=options.overwrite)
    if options.labels and options.fill is not None:
        raise InputError("--fill is for intensities; beyond a segmentation lies label 0.")
    if not options.labels:
        check_pixels(options.output, sitk.sitkFloat32, 2)
    reference = read_image(options.reference)
    stored = read_sitk(options.moving)
    if reference.ndim != stored.GetDimension():
        raise InputError(
            f"The reference is {reference.ndim}-D and the image {stored.GetDimension()}-D; give images of one "
            "dimension."
        )
    check_pixels(options.output, stored.GetPixelID() if options.labels else sitk.sitkFloat32, reference.ndim)
    transform = read_transform(options.transform, ndim=reference.ndim)
    if options.labels:
        labels = labels_from_sitk(stored, name=str(options.moving))
        moved = sample_labels(labels, grid_from_sitk(stored), transform.map_grid(reference.grid))
        # The values stay those of the input, so they fit its pixel type.
        write_sitk(sitk.Cast(to_sitk(moved[0], reference.grid), stored.GetPixelID()), options.output)
    else:
        moving = image_from_sitk(stored, name=str(options.moving))
        fill = background(moving) if options.fill is None else options.fill
        write_image(warp(moving, transform, reference.grid, fill=fill).data[0], reference.grid, options.output)
