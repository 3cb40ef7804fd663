"""Check what file lists and headers tell, before a training starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from learnreg.data.formats import Subject
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.headers import read_header, series_files
from learnreg.image import Image
from learnreg.landmarks import read_landmarks

REMEDIES = {
    "labels": "add its file (folder labels/, column labels), take the image out of the data, or train without labels "
    "(objective/supervision=null and a network without segments)",
    "landmarks": "add its file (column landmarks of a CSV), take the image out of the data, or train without landmarks "
    "(objective/supervision=null)",
}


def check_subjects(
    subjects: Sequence[Subject],
    needs: Sequence[str],
    shape: Sequence[int],
    pairs: Sequence[tuple[Subject, Subject]] | None = None,
) -> None:
    """Check the files of a data set by their headers.

    Args:
        subjects: Images to train on or to validate with.
        needs: What the training needs of every image: ``"labels"``, ``"landmarks"``.
        shape: Shape of the model's grid.
        pairs: The pairs of the data set, if it prescribes them: then landmarks correspond within each pair only.

    Raises:
        InputError: An image lacks what is needed, has another dimension than the model, or differs in size from its
            labels or mask; or two images that can be a pair differ in the number of landmarks.
    """
    for need in needs:
        lacking = [subject for subject in subjects if getattr(subject, need) is None]
        if lacking:
            more = f" and {len(lacking) - 1} more have" if len(lacking) > 1 else " has"
            raise InputError(f"{lacking[0].image}{more} no {need}, which this training needs; {REMEDIES[need]}.")
    sizes = {subject: _checked_size(subject, len(shape)) for subject in subjects}
    if "landmarks" in needs:
        for group in [sizes] if pairs is None else pairs:
            _check_landmarks({subject: sizes[subject] for subject in group})


def check_comparable(fixed: Image, moving: Image, names: tuple[object, object]) -> None:
    """Check that labels and landmarks of a pair have something in common, so that they are measured, not left out.

    A warning tells how many landmarks are not marked in both images.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        names: Of both, or of the files of their labels and landmarks, for messages.

    Raises:
        InputError: No label is in both images, or no landmark is marked in both.
    """
    if fixed.labels is not None and moving.labels is not None:
        values = [
            {int(v) for v in image.labels.unique()} - {0} for image in (fixed, moving) if image.labels is not None
        ]
        if not values[0] & values[1]:
            first, second = (", ".join(map(str, sorted(own)[:8])) or "none" for own in values)
            raise InputError(
                f"The segmentations of {names[0]} and {names[1]} have no label in common: {first}, and {second}. Give "
                "labels of the same organs by the same numbers, or leave them out."
            )
    if fixed.landmarks is not None and moving.landmarks is not None:
        counts = [image.shape[1] for image in (fixed.landmarks, moving.landmarks)]
        if counts[0] != counts[1]:
            raise InputError(
                f"{names[0]} has {counts[0]} landmarks and {names[1]} has {counts[1]}; give the same points for both."
            )
        unknown = (fixed.landmarks.isnan() | moving.landmarks.isnan()).any(-1)
        lacking, count = int(unknown.sum()), unknown.numel()
        if lacking == count:
            raise InputError(
                f"No landmark is marked in both {names[0]} and {names[1]}: {count} have NaN. Give coordinates, or "
                "leave the landmarks out."
            )
        if lacking:
            warnings.warn(
                f"{lacking} of {count} landmarks of {names[0]} and {names[1]} have NaN, and are left out.",
                stacklevel=2,
            )


def _checked_size(subject: Subject, ndim: int) -> tuple[int, ...]:
    """Return the size of an image from its header, after comparing it to those of its labels and mask."""
    size = _size(subject.image)
    if len(size) == 4 and subject.time is None:
        raise InputError(
            f"{subject.image} is 4-D; choose one of its {size[3]} time points by a column `time` of a table of images, "
            "`fixed_time` or `moving_time` of a table of pairs."
        )
    size = size[:3]
    if len(size) != ndim:
        raise InputError(
            f"{subject.image} is {len(size)}-D, but data.space.shape has {ndim} sizes; give {ndim}-D images, or set "
            f"{len(size)} sizes and network.ndim={len(size)}."
        )
    for kind, file in (("labels", subject.labels), ("mask", subject.mask), *(("channel", c) for c in subject.channels)):
        if file is not None and _size(file)[:3] != size:
            raise InputError(
                f"The {kind} {file} have size {_size(file)}, but the image {subject.image} has {size}; resample them "
                "onto the image's grid first."
            )
    return size


def _check_landmarks(sizes: Mapping[Subject, tuple[int, ...]]) -> None:
    counts = {}
    for subject, size in sizes.items():
        if subject.landmarks is not None:
            counts[subject.landmarks] = read_landmarks(subject.landmarks, Grid.regular(size[::-1])).shape[1]
    for file, count in counts.items():
        first, expected = next(iter(counts.items()))
        if count != expected:
            raise InputError(
                f"{file} has {count} landmarks and {first} has {expected}; list the same points in one order in every "
                "file, with nan where one is not marked."
            )


def _size(file: Path) -> tuple[int, ...]:
    size: tuple[int, ...] = read_header(file).GetSize()
    if not file.is_dir():
        return size
    return (*size[:2], len(series_files(file)))
