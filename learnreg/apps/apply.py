"""``learnreg apply``: resample an image or a segmentation through a saved transform."""

from __future__ import annotations

import argparse

from learnreg.errors import InputError
from learnreg.io import read_image, write_image
from learnreg.sampling import sample_labels
from learnreg.transforms.itk import read_transform
from learnreg.warping import warp


def run(options: argparse.Namespace) -> None:
    """Read, resample, write."""
    reference, moving = read_image(options.reference), read_image(options.moving)
    if reference.ndim != moving.ndim:
        raise InputError(
            f"The reference is {reference.ndim}-D and the image {moving.ndim}-D; give images of one dimension."
        )
    transform = read_transform(options.transform, ndim=moving.ndim)
    if options.labels:
        points = transform.map_grid(reference.grid)
        values = sample_labels(moving.data.round().int(), moving.grid, points)
    else:
        values = warp(moving, transform, reference.grid).data
    write_image(values[0], reference.grid, options.output)
    print(f"Wrote {options.output}")
