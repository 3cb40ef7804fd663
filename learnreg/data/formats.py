"""Read the subjects and pairs of a data set from folders, BIDS, CSV, TSV and Learn2Reg JSON."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk
import torch

from learnreg.data.bids import bids_rows, is_bids
from learnreg.errors import InputError, MissingFileError
from learnreg.headers import READABLE, read_header
from learnreg.image import Image
from learnreg.io import image_from_sitk, read_image, read_sitk, time_points
from learnreg.landmarks import read_named_landmarks
from learnreg.typing import PathLike
from learnreg.writing import subject_name

VECTORS = ".mha", ".mhd", ".nrrd"
TABLES = ".csv", ".tsv"
CHANNEL_DIGITS = 4  # of nnU-Net's names, case_0000.nii.gz


@dataclass(frozen=True)
class Subject:
    """Files of one image, and what is known of it.

    Args:
        image: A file, or a folder with a DICOM series.
        labels: Segmentation.
        mask: Non-zero where the image counts.
        group: What several images share, such as the patient.
        covariates: Numbers.
        landmarks: A file of :func:`learnreg.landmarks.read_landmarks`.
        channels: Further files on the same grid, the other channels of the image.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``None``.
        time: Time point of a 4-D file, from 0.
    """

    image: Path
    labels: Path | None = None
    mask: Path | None = None
    group: str | None = None
    covariates: tuple[float, ...] = ()
    landmarks: Path | None = None
    channels: tuple[Path, ...] = ()
    split: str | None = None
    time: int | None = None

    @property
    def files(self) -> tuple[Path | None, ...]:
        """All files, ``None`` for one that the subject lacks."""
        return (self.image, self.labels, self.mask, self.landmarks, *self.channels)

    def channel_count(self) -> int:
        """Return the number of channels, from the headers."""
        if self.channels or not self.image.name.lower().endswith(VECTORS):
            return 1 + len(self.channels)
        return int(read_header(self.image).GetNumberOfComponents())

    def read(self) -> Image:
        """Read the image with its channels, labels, mask, landmarks and covariates.

        A file of vectors has a channel for each component. Landmarks with names come in the order of their names, so
        that those of all images correspond.

        Raises:
            InputError: A file cannot be read, or does not fit the others; the message names it.
        """
        try:
            return self._read()
        except InputError:
            raise
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.image} or a file that belongs to it cannot be read: {reason}") from error

    def _read(self) -> Image:
        image = _read_channels(self.image, self.labels, self.mask, self.time)
        for file in self.channels:
            other = read_image(file, time=self.time)
            if other.grid.shape != image.grid.shape or not other.grid.matches(image.grid, tolerance=0.1):
                raise InputError(
                    f"{file} and {self.image} are channels of one image, but lie on different grids: {other.grid} and "
                    f"{image.grid}; resample one of them onto the other's grid."
                )
            image = _with_channel(image, other)
        known = torch.tensor([self.covariates], dtype=image.grid.dtype) if self.covariates else None
        points = None
        if self.landmarks is not None:
            points = read_named_landmarks(self.landmarks, image.grid).by_name().points
        return replace(image, covariates=known, landmarks=points)

    @property
    def name(self) -> str:
        """File name without the suffix of its format, with the time point such as ``_t3``."""
        name = subject_name(self.image)
        return name if self.time is None else f"{name}_t{self.time}"


Pair = tuple[Subject, Subject]


def _read_channels(file: Path, labels: Path | None, mask: Path | None, time: int | None) -> Image:
    """Read an image whose pixels can be vectors of intensities; colors are refused as for any image."""
    if not file.name.lower().endswith(VECTORS):
        return read_image(file, labels=labels, mask=mask, time=time)
    stored = read_sitk(file, time=time)
    count = stored.GetNumberOfComponentsPerPixel()
    if count == 1:
        return read_image(file, labels=labels, mask=mask, time=time)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "channel.nrrd"
        sitk.WriteImage(sitk.VectorIndexSelectionCast(stored, 0), str(first))
        image = read_image(first, labels=labels, mask=mask)
    for k in range(1, count):
        image = _with_channel(image, image_from_sitk(sitk.VectorIndexSelectionCast(stored, k), name=str(file)))
    return image


def _with_channel(image: Image, other: Image) -> Image:
    """Add the channel of another image; what is unknown in one of them is left out of the mask."""
    masks = [mask for mask in (image.mask, other.mask) if mask is not None]
    mask = masks[0] * masks[1] if len(masks) == 2 else next(iter(masks), None)
    return replace(image, data=torch.cat([image.data, other.data], 1), mask=mask)


def read_subjects(path: PathLike, covariates: Sequence[str] = ()) -> list[Subject]:
    """Read the list of images of a data set, in a fixed order.

    Args:
        path: A folder (with ``images/`` and, by the same names, ``labels/`` and ``masks/``; with ``imagesTr/`` and
            ``labelsTr/`` of nnU-Net; or with the images themselves; an image can be a folder with a DICOM series), a
            BIDS data set, a CSV or TSV with the columns ``image[,labels][,mask][,landmarks][,group][,split]``, or a
            Learn2Reg ``dataset.json``. In a table, ``;`` separates the files of the channels of one image. Each time
            point of a 4-D file is an image, of one group; a column ``time`` chooses one.
        covariates: Further columns of a table, or of the ``participants.tsv`` of BIDS, that hold a number per image.

    Raises:
        MissingFileError: The path or a file that it names does not exist.
        InputError: There are no images, or a column is missing.
    """
    return [one for subject in _listed(path, covariates) for one in _time_points(subject)]


def _listed(path: PathLike, covariates: Sequence[str]) -> list[Subject]:
    file = _existing(path)
    if file.is_dir() and not (file / "dataset.json").exists() and is_bids(file):
        return [_subject(row, file, covariates) for row in bids_rows(file)]
    if covariates and file.suffix not in TABLES:
        raise InputError(f"Covariates ({', '.join(covariates)}) need a CSV or TSV, {file} is not one.")
    if file.is_dir():
        if (file / "dataset.json").exists():
            return _listed(file / "dataset.json", ())
        return _from_folder(file)
    if file.suffix == ".json":
        unlisted = (file.parent / "imagesTr").is_dir()  # nnU-Net's dataset.json lists no files
        items = _json_items(file, ("training", "test", "numTraining"), required=not unlisted)
        return [_json_subject(item, file) for item in items] or _from_folder(file.parent)
    rows = table_rows(file)
    if "image" not in rows[0]:
        raise InputError(
            f"{file} needs a column `image` (and may have `labels`, `mask`, `landmarks`), got {', '.join(rows[0])}."
        )
    return [_subject(row, file, covariates) for row in rows]


def _time_points(subject: Subject) -> list[Subject]:
    """Return the images of a file: one for each time point of a 4-D file."""
    count = 1 if subject.time is not None else time_points(subject.image)
    if count == 1:
        return [subject]
    if subject.landmarks is not None:
        raise InputError(
            f"{subject.image} has {count} time points, and {subject.landmarks} cannot belong to all of them; list each "
            "time point in a row, with a column `time`."
        )
    return [replace(subject, time=k, group=subject.group or subject.name) for k in range(count)]


def read_pairs(path: PathLike) -> list[Pair] | None:
    """Read the pairs that a data set prescribes; ``None`` for unpaired images.

    Args:
        path: A CSV or TSV with the columns ``fixed,moving`` and, as ``fixed_X`` and ``moving_X``, those of
            :func:`read_subjects`; or a Learn2Reg ``dataset.json``.
    """
    file = _existing(path)
    if file.is_dir():
        return read_pairs(file / "dataset.json") if (file / "dataset.json").exists() else None
    if file.suffix == ".json":
        items = _json_items(file, ("registration_val", "training_paired_images", "paired_images"), required=False)
        return [_json_pair(item, file) for item in items] or None
    rows = table_rows(file)
    if "fixed" not in rows[0] or "moving" not in rows[0]:
        return None
    return [(_member_of(row, "fixed", file), _member_of(row, "moving", file)) for row in rows]


def _existing(path: PathLike) -> Path:
    file = Path(path).expanduser()
    if not file.exists():
        raise MissingFileError(f"No such data set: {file}. Give a folder, a CSV or a dataset.json.")
    return file


def _is_image(file: Path) -> bool:
    return file.is_file() and file.name.lower().endswith(READABLE) and not file.name.startswith(".")


def _is_series(folder: Path) -> bool:
    return folder.is_dir() and any(part.name.lower().endswith((".dcm", ".ima")) for part in folder.iterdir())


def _from_folder(folder: Path) -> list[Subject]:
    """List the images of a folder; with their labels and masks if it has ``images``, or nnU-Net's ``imagesTr``."""
    block = next((block for block in ("", "Tr") if (folder / f"images{block}").is_dir()), None)
    images = folder if block is None else folder / f"images{block}"
    files = sorted(file for file in images.iterdir() if _is_image(file) or _is_series(file))
    if not files:
        raise InputError(f"{images} holds no images ({', '.join(READABLE)}, or folders with a DICOM series).")
    if block is None:
        return [Subject(file) for file in files]
    labels, masks = folder / f"labels{block}", folder / f"masks{block}"
    return [
        Subject(file, _beside(labels, file), _beside(masks, file), channels=more)
        for file, more in _by_case(files, labels)
    ]


def _by_case(files: Sequence[Path], labels: Path) -> list[tuple[Path, tuple[Path, ...]]]:
    """Return each image with its other channels.

    nnU-Net names the channels of the labels ``a`` ``a_0000``, ``a_0001``; other images have one channel.
    """
    cases: dict[Path, list[Path]] = {}
    firsts: dict[str, Path] = {}
    for file in files:
        case, number = _numbered(file)
        label = _beside(labels, file)
        shared = number is not None and label is not None and subject_name(label) == case
        if shared and number != 0 and case in firsts:
            cases[firsts[case]].append(file)
            continue
        cases[file] = []
        if shared and number == 0:
            firsts[case] = file
    return [(file, tuple(more)) for file, more in cases.items()]


def _numbered(file: Path) -> tuple[str, int | None]:
    """Return the case and the channel of a file that nnU-Net names; ``None`` for other names."""
    case, _, number = subject_name(file).rpartition("_")
    named = bool(case) and len(number) == CHANNEL_DIGITS and number.isdecimal()
    return (case, int(number)) if named else (subject_name(file), None)


def _beside(folder: Path, image: Path) -> Path | None:
    """Return the file of a folder with the name of an image, in any format, with or without nnU-Net's ``_0000``."""
    bases = dict.fromkeys((subject_name(image), _numbered(image)[0]))
    names = [image.name, *(f"{base}{suffix}" for base in bases for suffix in READABLE)]
    return next((folder / name for name in names if (folder / name).exists()), None)


def table_rows(file: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV or TSV by the names of the columns.

    Raises:
        InputError: It is not text, has no rows, two columns of one name or another separator, or a row is too long.
    """
    separator = "\t" if file.suffix == ".tsv" else ","
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, delimiter=separator)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a CSV; give a folder, a CSV, a TSV or a dataset.json.") from error
    if not rows:
        raise InputError(f"{file} has no rows; give a header line and one line an image or pair.")
    other = [sign for sign in ",;\t" if sign != separator and sign in columns[0]]
    if len(columns) == 1 and other:
        raise InputError(f"{file} is separated by {other[0]!r}; write {separator!r} between the columns.")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"{file} has two columns {twice[0]!r}; name each column once.")
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise InputError(f"{file}: row {number} has more values than there are columns; quote a comma in a name.")
    return rows


def _subject(row: Mapping[str, str], file: Path, covariates: Sequence[str]) -> Subject:
    return replace(_member_of(row, "", file), covariates=_numbers(row, covariates, file))


def _member_of(row: Mapping[str, str], prefix: str, file: Path) -> Subject:
    """Return the subject of a row of a table."""
    before = f"{prefix}_" if prefix else ""

    def text(column: str) -> str:
        return (row.get(column) or "").strip()

    def path(column: str) -> Path | None:
        return _member(text(column), file) if text(column) else None

    images = [_member(part.strip(), file) for part in text(prefix or "image").split(";") if part.strip()]
    if not images:
        raise InputError(f"{file} has a row without `{prefix or 'image'}`.")
    split = text("split") or None
    if split not in (None, "train", "validation", "test"):
        raise InputError(f"{file} has split {split!r} for {images[0]}; it is train, validation or test.")
    return Subject(
        images[0],
        path(f"{before}labels") or path(f"{before}label"),
        path(f"{before}mask"),
        text(f"{before}group") or text("group") or text("subject") or None,
        landmarks=path(f"{before}landmarks"),
        channels=tuple(images[1:]),
        split=split,
        time=_time(text(f"{before}time"), file),
    )


def _time(text: str, file: Path) -> int | None:
    if text and not text.isdecimal():
        raise InputError(f"{file} has time {text!r}; it is the number of a time point, from 0.")
    return int(text) if text else None


def _numbers(row: Mapping[str, str], columns: Sequence[str], file: Path) -> tuple[float, ...]:
    try:
        return tuple(float(row[column]) for column in columns)
    except KeyError as error:
        raise InputError(f"{file} has no column {error} for a covariate; it has {', '.join(row)}.") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} needs a number in {', '.join(columns)} for {row['image']}: {error}.") from error


def _member(name: str | None, source: Path) -> Path:
    """Return a file that a data set names, relative to the folder of its table."""
    if not isinstance(name, str):
        raise InputError(f"The data set {source} has {name!r} where the name of an image file should be.")
    file = (source if source.is_dir() else source.parent) / Path(name).expanduser()
    if not file.exists():
        raise MissingFileError(f"No such file: {file}, named by the data set {source}. Correct the name.")
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


def _json_subject(item: Mapping[str, str], file: Path) -> Subject:
    labels, mask = item.get("label"), item.get("mask")
    return Subject(
        _member(item.get("image"), file),
        _member(labels, file) if labels else None,
        _member(mask, file) if mask else None,
    )


def _json_pair(item: Mapping[str, str], file: Path) -> Pair:
    """Read a pair of names; labels and masks lie in Learn2Reg's ``labelsTr`` and ``masksTr``."""

    def subject(name: str | None) -> Subject:
        image = _member(name, file)
        sibling = image.parent.name.replace("images", "{}")
        folders = {kind: image.parent.parent / sibling.format(kind) for kind in ("labels", "masks")}
        return Subject(image, _beside(folders["labels"], image), _beside(folders["masks"], image))

    return subject(item.get("fixed")), subject(item.get("moving"))
