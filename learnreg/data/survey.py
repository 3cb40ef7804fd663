"""Check every file of a data set, and describe what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from learnreg.data.formats import Subject, read_pairs, read_subjects
from learnreg.data.splits import duplicates
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.typing import PathLike

SHOWN = 12  # labels of a list


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a data set.

    Args:
        file: The file.
        problem: What is wrong, in one line.
        serious: A training would fail or be wrong; otherwise it is worth a look.
    """

    file: Path
    problem: str
    serious: bool = True


@dataclass(frozen=True)
class Entry:
    """What was found of one image.

    Args:
        subject: Its files.
        shape: ``(z, y, x)``; ``None`` if the image cannot be read.
        spacing: mm, along ``(x, y, z)``.
        orientation: Such as ``LPS``; ``oblique`` is added if the axes are turned by more than 2 degrees.
        channels: Number of channels.
        range: Lowest and highest intensity.
        labels: Values of its segmentation; ``None`` without one.
        findings: What is wrong.
    """

    subject: Subject
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    channels: int = 0
    range: tuple[float, float] | None = None
    labels: tuple[int, ...] | None = None
    findings: tuple[Finding, ...] = ()


def survey(
    subjects: Sequence[Subject], progress: Callable[[Iterable[Subject]], Iterable[Subject]] = iter
) -> list[Entry]:
    """Read every file of a data set and check it.

    Files must be readable, with a geometry that does not contradict itself; labels must be integers on the grid of
    their image; images must not be infinite or constant; no two images can have the same content. An image whose
    labels, orientation or channels differ from those of most images gets a finding that is not serious.

    Args:
        subjects: See :func:`learnreg.data.read_subjects`.
        progress: Wraps the subjects, such as ``tqdm``.

    Example:
        >>> learnreg.io.write_image(torch.rand(1, 4, 5, 6), learnreg.Grid.regular((4, 5, 6)), "data/a.nii.gz")
        >>> entry = survey(read_subjects("data"))[0]
        >>> entry.shape, entry.orientation, entry.findings
        ((4, 5, 6), 'LPS', ())
    """
    entries = [_entry(subject) for subject in progress(subjects)]
    more: dict[Path, list[Finding]] = {}
    for finding in (*_same_content(entries), *_unlike_most(entries)):
        more.setdefault(finding.file, []).append(finding)
    return [
        Entry(**{**vars(entry), "findings": (*entry.findings, *more.get(entry.subject.image, ()))}) for entry in entries
    ]


def all_subjects(path: PathLike) -> list[Subject]:
    """Return the images of a data set, of pairs each image once."""
    pairs = read_pairs(path)
    if pairs is None:
        return read_subjects(path)
    return list(dict.fromkeys(subject for pair in pairs for subject in pair))


def _entry(subject: Subject) -> Entry:
    try:
        image = subject.read()
    except InputError as error:
        named = [file for file in subject.files if file is not None and str(file) in str(error)]
        return Entry(subject, findings=(Finding(named[0] if named else subject.image, str(error)),))
    values = image.data.numpy()
    findings = [
        Finding(subject.image, f"channel {k} is constant: every value is {channel.flat[0]:g}")
        for k, channel in enumerate(values[0])
        if channel.min() == channel.max()
    ]
    if image.mask is not None and subject.mask is None:
        share = 100 * float((image.mask == 0).double().mean())
        findings.append(Finding(subject.image, f"{share:.3g} % of it is NaN, and left out as by a mask", serious=False))
    labels = None if image.labels is None else tuple(int(v) for v in np.unique(image.labels.numpy()))
    if labels is not None and subject.labels is not None:
        findings += _of_labels(subject.labels, labels)
    if min(image.grid.shape) < 2 <= image.ndim:
        findings.append(Finding(subject.image, f"it has a single slice: shape {image.grid.shape}", serious=False))
    return Entry(
        subject,
        image.grid.shape,
        tuple(round(float(s), 3) for s in image.grid.spacing[0]),
        orientation(image.grid),
        image.data.shape[1],
        (float(values.min()), float(values.max())),
        labels,
        tuple(findings),
    )


def _of_labels(file: Path, labels: Sequence[int]) -> Iterator[Finding]:
    if labels[0] < 0:
        yield Finding(file, f"labels are negative: {labels[0]}; 0 is background, others are positive")
    if not any(labels):
        yield Finding(file, "the segmentation is empty: every value is 0", serious=False)


def orientation(grid: Grid) -> str:
    """Return where the axes of a grid point to, such as ``LPS``.

    Example:
        >>> orientation(Grid.regular((4, 5, 6)))
        'LPS'
    """
    direction = grid.direction[0].double().cpu().numpy()
    if grid.ndim == 2:
        return "2-D"
    code = str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction.ravel().tolist()))
    turned = np.degrees(np.arccos(np.clip(np.abs(direction).max(0), 0, 1))).max()
    return f"{code} oblique" if turned > 2 else code


def _same_content(entries: Sequence[Entry]) -> Iterator[Finding]:
    files = [entry.subject.image for entry in entries if entry.shape is not None]
    for same in duplicates(files):
        for file in same[1:]:
            yield Finding(file, f"it has the same content as {same[0]}")


def _unlike_most(entries: Sequence[Entry]) -> Iterator[Finding]:
    """What differs from most images: a mistake more often than not."""
    readable = [entry for entry in entries if entry.shape is not None]
    for what in ("orientation", "channels", "labels"):
        values = {entry.subject.image: getattr(entry, what) for entry in readable}
        counts = Counter(values.values())
        if len(counts) < 2:
            continue
        usual, often = counts.most_common(1)[0]
        if often <= len(values) / 2:
            continue
        for file, value in values.items():
            if value != usual:
                difference = _difference(what, value, usual)
                yield Finding(file, f"{difference} {often} of {len(values)} images", what == "channels")


def _difference(what: str, value: object, usual: object) -> str:
    if isinstance(value, tuple) and isinstance(usual, tuple):
        parts = (("has", set(value) - set(usual)), ("lacks", set(usual) - set(value)))
        return "; ".join(f"{verb} the labels {_listed(some)}" for verb, some in parts if some) + ", unlike"
    if what == "labels":
        return "has no labels, unlike" if value is None else "has labels, unlike"
    return f"{what} is {value}, and {usual} in"


def _listed(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
