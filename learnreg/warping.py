"""Warp an image through a transform."""

from __future__ import annotations

from dataclasses import replace

import torch

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.interpolation import Mode
from learnreg.sampling import LabelMode, Padding, sample_image, sample_separable
from learnreg.transforms.base import Transform


def warp(
    moving: Image,
    transform: Transform,
    onto: Grid,
    *,
    mode: Mode = "linear",
    padding: Padding = "zeros",
    fill: float = 0.0,
    labels: LabelMode = "nearest",
) -> Image:
    """Warp an image through a transform: ``warped(x) = moving(transform(x))``.

    Args:
        moving: The image to warp. Its mask is sampled by nearest neighbor, its landmarks are mapped by the inverse
            transform, its covariates are kept.
        transform: Points of the fixed space, mm, to points of the moving space, mm.
        onto: The fixed grid.
        mode: Interpolation of the intensities.
        padding: Value outside of ``moving``: ``"zeros"`` for ``fill``, or that of the nearest ``"border"`` sample.
        fill: Value outside of ``moving``, such as :func:`learnreg.image.background`.
        labels: Interpolation of the labels, see :func:`learnreg.sampling.sample_labels`.

    Returns:
        An image on ``onto``. If ``moving`` has a mask, the mask is 0 outside of ``moving``.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4))
        >>> image = learnreg.Image(torch.arange(16.0).reshape(1, 1, 4, 4), grid)
        >>> warp(image, learnreg.Affine.translation([1.0, 0.0]), grid).data[0, 0, 0]
        tensor([1., 2., 3., 0.])
    """
    if fill:  # interpolation is linear: with the fill at 0, zeros outside are right
        warped = warp(moving.with_data(moving.data - fill), transform, onto, mode=mode, padding=padding, labels=labels)
        return warped.with_data(warped.data + fill)
    found = transform.separable(onto)
    if found is None:
        warped = sample_image(moving, transform.map_grid(onto), onto, mode=mode, padding=padding, labels=labels)
    else:
        warped = sample_separable(moving, found, onto, mode=mode, padding=padding, labels=labels)
    if moving.covariates is not None:
        warped = replace(warped, covariates=moving.covariates.expand(warped.batch_size, -1))
    if moving.landmarks is None:
        return warped
    mapped = transform.inverse()(moving.landmarks.nan_to_num())  # NaN times a gradient of 0 would be NaN
    return replace(warped, landmarks=mapped.where(~moving.landmarks.isnan(), torch.nan))
