"""Read the subjects and pairs of a data set from folders, CSV and Learn2Reg JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from learnreg.errors import InputError, MissingFileError
from learnreg.image import Image
from learnreg.io import SUFFIXES, read_image, subject_name
from learnreg.landmarks import read_named_landmarks
from learnreg.typing import PathLike


@dataclass(frozen=True)
class Subject:
    """Files of one image, its group (such as a patient with several visits), its covariates and its landmarks."""

    image: Path
    labels: Path | None = None
    mask: Path | None = None
    group: str | None = None
    covariates: tuple[float, ...] = ()
    landmarks: Path | None = None

    def read(self) -> Image:
        """Read the image with its labels, mask, landmarks and covariates.

        Landmarks with names come in the order of their names, so that those of all images correspond.
        """
        image = read_image(self.image, labels=self.labels, mask=self.mask)
        known = torch.tensor([self.covariates], dtype=image.grid.dtype) if self.covariates else None
        points = None
        if self.landmarks is not None:
            points = read_named_landmarks(self.landmarks, image.grid).by_name().points
        return replace(image, covariates=known, landmarks=points)

    @property
    def name(self) -> str:
        """File name without the suffix of its format."""
        return subject_name(self.image)


Pair = tuple[Subject, Subject]


def read_subjects(path: PathLike, covariates: Sequence[str] = ()) -> list[Subject]:
    """Read the list of images of a data set, in a fixed order.

    Args:
        path: A folder (with ``images/`` and, by the same names, ``labels/`` and ``masks/``, or with the images
            themselves), a CSV with the columns ``image[,labels][,mask][,landmarks][,group]``, or a Learn2Reg
            ``dataset.json``. Landmarks are files of :func:`learnreg.landmarks.read_landmarks`.
        covariates: Further columns of a CSV that hold a number per image.

    Raises:
        MissingFileError: The path or a file that it names does not exist.
        InputError: There are no images, or a column is missing.
    """
    file = _existing(path)
    if covariates and file.suffix != ".csv":
        raise InputError(f"Covariates ({', '.join(covariates)}) need a CSV, {file} is not one.")
    if file.is_dir():
        if (file / "dataset.json").exists():
            return read_subjects(file / "dataset.json")
        return _from_folder(file)
    if file.suffix == ".json":
        return [_json_subject(item, file.parent) for item in _json_items(file, ("training", "test", "numTraining"))]
    rows = _csv_rows(file)
    if "image" not in rows[0]:
        raise InputError(
            f"{file} needs a column `image` (and may have `labels`, `mask`, `landmarks`), got {', '.join(rows[0])}."
        )
    return [replace(_csv_subject(row, "", file), covariates=_numbers(row, covariates, file)) for row in rows]


def read_pairs(path: PathLike) -> list[Pair] | None:
    """Read the pairs that a data set prescribes; ``None`` for unpaired images.

    Args:
        path: A CSV with the columns ``fixed,moving`` and, as ``fixed_X`` and ``moving_X``, those of
            :func:`read_subjects`; or a Learn2Reg ``dataset.json``.
    """
    file = _existing(path)
    if file.is_dir():
        return read_pairs(file / "dataset.json") if (file / "dataset.json").exists() else None
    if file.suffix == ".json":
        items = _json_items(file, ("registration_val", "training_paired_images", "paired_images"), required=False)
        return [_json_pair(item, file) for item in items] or None
    rows = _csv_rows(file)
    if "fixed" not in rows[0] or "moving" not in rows[0]:
        return None
    return [(_csv_subject(row, "fixed", file), _csv_subject(row, "moving", file)) for row in rows]


def _existing(path: PathLike) -> Path:
    file = Path(path).expanduser()
    if not file.exists():
        raise MissingFileError(f"No such data set: {file}. Give a folder, a CSV or a dataset.json.")
    return file


def _is_image(file: Path) -> bool:
    return file.is_file() and file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")


def _from_folder(folder: Path) -> list[Subject]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(file for file in images.iterdir() if _is_image(file))
    if not files:
        raise InputError(f"{images} holds no images ({', '.join(SUFFIXES)}).")
    if images is folder:
        return [Subject(file) for file in files]
    return [Subject(file, _beside(folder / "labels", file), _beside(folder / "masks", file)) for file in files]


def _beside(folder: Path, image: Path) -> Path | None:
    file = folder / image.name
    return file if file.exists() else None


def _csv_rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a CSV; give a folder, a CSV or a dataset.json.") from error
    if not rows:
        raise InputError(f"{file} has no rows; give a header line and one line an image or pair.")
    return rows


def _csv_subject(row: Mapping[str, str], prefix: str, file: Path) -> Subject:
    def path(column: str) -> Path | None:
        value = (row.get(column) or "").strip()
        return _member(value, file.parent) if value else None

    image = path(prefix or "image")
    if image is None:
        raise InputError(f"{file} has a row without `{prefix or 'image'}`.")
    before = f"{prefix}_" if prefix else ""
    group = (row.get("group") or "").strip() or None
    labels = path(f"{before}labels") or path(f"{before}label")
    return Subject(image, labels, path(f"{before}mask"), group, landmarks=path(f"{before}landmarks"))


def _numbers(row: Mapping[str, str], columns: Sequence[str], file: Path) -> tuple[float, ...]:
    try:
        return tuple(float(row[column]) for column in columns)
    except KeyError as error:
        raise InputError(f"{file} has no column {error} for a covariate; it has {', '.join(row)}.") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} needs a number in {', '.join(columns)} for {row['image']}: {error}.") from error


def _member(name: str | None, folder: Path) -> Path:
    if not isinstance(name, str):
        raise InputError(f"The data set in {folder} has {name!r} where the name of an image file should be.")
    file = folder / Path(name).expanduser()
    if not file.exists():
        raise MissingFileError(f"No such file: {file}, named by the data set in {folder}.")
    return file


def _json_items(file: Path, keys: tuple[str, ...], *, required: bool = True) -> list[dict[str, str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error
    content = content if isinstance(content, dict) else {}
    for key in keys:
        items = content.get(key)
        if isinstance(items, list) and items:
            return [item if isinstance(item, dict) else {"image": item} for item in items]
    if required:
        raise InputError(
            f"{file} has no list {' or '.join(repr(key) for key in keys[:2])} as Learn2Reg's dataset.json has."
        )
    return []


def _json_subject(item: Mapping[str, str], folder: Path) -> Subject:
    labels, mask = item.get("label"), item.get("mask")
    return Subject(
        _member(item.get("image"), folder),
        _member(labels, folder) if labels else None,
        _member(mask, folder) if mask else None,
    )


def _json_pair(item: Mapping[str, str], file: Path) -> Pair:
    """Read a pair of names; labels and masks lie in Learn2Reg's ``labelsTr`` and ``masksTr``."""

    def subject(name: str | None) -> Subject:
        image = _member(name, file.parent)
        sibling = image.parent.name.replace("images", "{}")
        folders = {kind: image.parent.parent / sibling.format(kind) for kind in ("labels", "masks")}
        return Subject(image, _beside(folders["labels"], image), _beside(folders["masks"], image))

    return subject(item.get("fixed")), subject(item.get("moving"))
