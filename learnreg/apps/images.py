"""``learnreg check IMAGE...``: describe image files, and tell what is wrong with each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from learnreg.apps.apply import looks_like_labels
from learnreg.data.formats import TABLES
from learnreg.data.survey import orientation
from learnreg.errors import InputError
from learnreg.headers import READABLE
from learnreg.io import grid_from_sitk, image_from_sitk, read_sitk
from learnreg.typing import PathLike

SHOWN = 10  # labels of a list
THICK = 4.0  # times the smallest spacing
PLAUSIBLE = 0.01, 20.0  # mm


@dataclass(frozen=True)
class Description:
    """What is known of one image file.

    Args:
        file: The file, or a folder with a DICOM series.
        rows: Properties by their names, in order.
        errors: Why it cannot be registered.
        notes: What is worth a look.
    """

    file: str
    rows: dict[str, str]
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def run(files: Sequence[PathLike], *, quiet: bool = False) -> None:
    """Print a description of each image, and what is wrong; exit with status 1 if one cannot be used."""
    bad = noted = 0
    for file in files:
        described = describe(file)
        if not quiet:
            print(described.file)
            for name, value in described.rows.items():
                print(f"  {name:13} {value}")
        for kind, lines in (("error", described.errors), ("note", described.notes)):
            for line in lines:
                print(f"{kind}: {described.file}: {line}")
        bad += bool(described.errors)
        noted += len(described.notes)
    print(f"{len(files)} images; {bad} cannot be used, {noted} notes")
    if bad:
        raise SystemExit(1)


def are_images(paths: Sequence[PathLike]) -> bool:
    """Return whether paths are images; a single folder or table is a data set, unless it is one DICOM series."""
    first = Path(paths[0])
    if len(paths) > 1:
        return True
    if first.is_dir():
        return len(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(first))) == 1
    return first.suffix not in (*TABLES, ".json") and (first.exists() or first.name.lower().endswith(READABLE))


def describe(file: PathLike) -> Description:
    """Read an image and describe it.

    Example:
        >>> learnreg.io.write_image(torch.rand(1, 4, 5, 6), learnreg.Grid.regular((4, 5, 6)), "a.nii.gz")
        >>> found = describe("a.nii.gz")
        >>> found.rows["shape z y x"], found.rows["axes"], found.errors
        ('4 5 6', 'LPS', ())
    """
    rows: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stored = read_sitk(file)
            rows |= _geometry(stored)
            problems = _describe_values(stored, str(file), rows)
        except InputError as error:
            problems = [str(error).removeprefix(str(file)).lstrip(": ")], []
    errors, notes = problems
    notes = [*(str(one.message).removeprefix(str(file)).lstrip(": ") for one in caught), *notes]
    return Description(str(file), rows, tuple(errors), tuple(dict.fromkeys(notes)))


def _geometry(stored: sitk.Image) -> dict[str, str]:
    size, spacing = stored.GetSize(), stored.GetSpacing()
    kind = stored.GetPixelIDTypeAsString()
    channels = stored.GetNumberOfComponentsPerPixel()
    rows = {
        "shape z y x": " ".join(map(str, size[::-1])),
        "type": kind if channels == 1 else f"{kind}, {channels} values a voxel",
        "spacing x y z": " ".join(f"{s:.4g}" for s in spacing) + " mm",
        "extent x y z": " ".join(f"{n * s:.4g}" for n, s in zip(size, spacing, strict=True)) + " mm",
    }
    if stored.GetDimension() in (2, 3):
        middle = stored.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
        rows["center LPS"] = " ".join(f"{x:.4g}" for x in middle) + " mm"
        rows["axes"] = orientation(grid_from_sitk(stored))
    return rows


def _describe_values(stored: sitk.Image, name: str, rows: dict[str, str]) -> tuple[list[str], list[str]]:
    """Add rows about the intensities; return errors and notes."""
    image = image_from_sitk(stored, name=name)
    values = image.data.numpy().ravel() if image.mask is None else image.data[image.mask > 0].numpy()
    low, high = float(values.min()), float(values.max())
    part = np.percentile(values, (1, 50, 99))
    rows["range"] = f"{low:.5g} to {high:.5g}, mean {values.mean():.5g}"
    rows["percentiles"] = f"1 %: {part[0]:.5g}, 50 %: {part[1]:.5g}, 99 %: {part[2]:.5g}"
    unknown = image.data.numel() - len(values)
    rows["NaN"] = f"{unknown} voxels, {100 * unknown / image.data.numel():.3g} %" if unknown else "none"
    notes = []
    if unknown:
        notes.append("voxels that are NaN are left out as by a mask")
    if low < high and looks_like_labels(stored):
        labels = [str(int(value)) for value in np.unique(values)]
        shown = " ".join(labels[:SHOWN]) + (f" ... ({len(labels)} values)" if len(labels) > SHOWN else "")
        rows["labels"] = shown
        notes.append("it looks like a segmentation; apply needs --labels for one")
    return ["it is constant: nothing in it can be aligned"] if low == high else [], notes + _unusual(stored)


def _unusual(stored: sitk.Image) -> list[str]:
    size, spacing = stored.GetSize(), stored.GetSpacing()
    notes = []
    if min(size) == 1:
        notes.append("it has a single slice, which is registered in its plane")
    elif min(size) < 8:
        notes.append(f"it has only {min(size)} samples along an axis")
    if max(spacing) > THICK * min(spacing):
        notes.append(f"voxels are {max(spacing) / min(spacing):.1f} times as long as wide")
    if min(spacing) < PLAUSIBLE[0] or max(spacing) > PLAUSIBLE[1]:
        notes.append("the spacing is unusual; are its units mm?")
    return notes
