"""Turn a public data set, as it is downloaded, into a table that learnreg trains on.

    python scripts/prepare.py oasis neurite-oasis.v1.0.tar -o DATA/oasis
    LEARNREG_DATA=DATA python train.py experiment=oasis

Archives are unpacked into the output. Of a folder that is unpacked already, only the table is written. All files are
read. docs/data.md lists the sets, their sources and licences.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

from learnreg.apps.errors import reporting_errors
from learnreg.data import read_pairs, read_subjects
from learnreg.data.checks import check_subjects
from learnreg.data.survey import survey
from learnreg.errors import InputError, MissingFileError
from learnreg.writing import PART, write_atomically

TABLE = "data.csv"
Row = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A public data set.

    Args:
        rows: Finds the rows of the table in the folder that was unpacked.
        expected: Number of rows of the whole set; ``None`` for sets that grow.
        needs: What every image must have.
    """

    rows: Callable[[Path], list[Row]]
    expected: int | None
    needs: tuple[str, ...] = ()


def hippocampus(folder: Path) -> list[Row]:
    """Medical Segmentation Decathlon, Task04_Hippocampus: ``imagesTr``, ``labelsTr``; the last 40 validate."""
    images = found(folder, "imagesTr/hippocampus_*.nii.gz")
    return [
        {"image": image, "labels": image.replace("imagesTr", "labelsTr"), "split": split}
        for image, split in zip(images, splits(len(images), 40), strict=True)
    ]


def oasis(folder: Path) -> list[Row]:
    """OASIS-1 by neurite: a folder per subject with ``aligned_norm`` and ``aligned_seg35``; the last 20 validate."""
    images = found(folder, "OASIS_OAS1_*_MR1/aligned_norm.nii.gz")
    return [
        {"image": image, "labels": image.replace("aligned_norm", "aligned_seg35"), "group": group, "split": split}
        for image, split in zip(images, splits(len(images), 20), strict=True)
        for group in [Path(image).parent.name]
    ]


def ixi(folder: Path) -> list[Row]:
    """IXI: files such as ``IXI002-Guys-0828-T1.nii.gz`` of one contrast or several; the last 20 people validate."""
    images = found(folder, "IXI*-*-*-*.nii.gz")
    people = sorted({Path(image).name[:6] for image in images})
    split = dict(zip(people, splits(len(people), 20), strict=True))
    return [{"image": i, "group": Path(i).name[:6], "split": split[Path(i).name[:6]]} for i in images]


def learn2reg(folder: Path) -> list[Row]:
    """Learn2Reg since 2022: ``*_dataset.json`` with pairs or images, and what lies beside an image by the same name."""
    (description,) = found(folder, "*_dataset.json", at_most=1)
    root = (folder / description).parent
    try:
        content = json.loads((folder / description).read_text(encoding="utf-8"))
        held_out = content.get("registration_val") or content.get("validation") or []
        validation = [(pair["fixed"], pair["moving"]) for pair in held_out]
        training = [(pair["fixed"], pair["moving"]) for pair in content.get("training_paired_images") or []]
        single = [item["image"] for item in content.get("training") or []]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{description} is no description of Learn2Reg: {error!r}.") from error
    if training:
        pairs = [(*pair, "train") for pair in training if pair not in validation]
        pairs += [(*pair, "validation") for pair in validation]
        return [
            {**beside(folder, root / fixed, "fixed"), **beside(folder, root / moving, "moving"), "split": split}
            for fixed, moving, split in pairs
        ]
    images = dict.fromkeys((root / name).resolve() for name in single)
    held = dict.fromkeys((root / name).resolve() for pair in validation for name in pair)
    return [
        beside(folder, image, "image") | {"split": "validation" if image in held else "train"}
        for image in [*(i for i in images if i not in held), *held]
    ]


SOURCES = {
    "hippocampus": Source(hippocampus, 260, ("labels",)),
    "oasis": Source(oasis, 414, ("labels",)),
    "ixi": Source(ixi, None),
    "nlst": Source(learn2reg, None, ("landmarks",)),
    "abdomen_mrct": Source(learn2reg, None),
    "l2r_oasis": Source(learn2reg, 414, ("labels",)),
    "lumir": Source(learn2reg, None),
}


def found(folder: Path, pattern: str, at_most: int | None = None) -> list[str]:
    """Return the files of a pattern at any depth, relative to the folder, in the order of their names.

    Raises:
        InputError: There are none, or too many.
    """
    files = sorted(file for file in folder.rglob(pattern) if not file.name.startswith("."))  # macOS leaves ._ files
    if not files or len(files) > (at_most or len(files)):
        raise InputError(f"{folder} has {len(files)} files {pattern}; this is another data set, or it is not complete.")
    return [file.relative_to(folder).as_posix() for file in files]


def splits(count: int, last: int) -> list[str]:
    """Return ``train`` for all but the last subjects, of a set that has no blocks of its own."""
    held = min(last, max(2, count // 5))
    return ["train"] * (count - held) + ["validation"] * held


def beside(folder: Path, image: Path, role: str) -> Row:
    """Return an image of Learn2Reg with its labels, mask and landmarks, as columns of a table."""
    file = image.resolve()
    root = folder.resolve()
    if not file.is_relative_to(root):
        raise InputError(f"{image} lies outside of the data set {folder}.")
    row = {role: file.relative_to(root).as_posix()}
    prefix = "" if role == "image" else f"{role}_"
    for column, kind in (("labels", "labels"), ("mask", "masks")):
        other = file.parent.with_name(file.parent.name.replace("images", kind)) / file.name
        if other.exists():
            row[f"{prefix}{column}"] = other.relative_to(root).as_posix()
    points = file.parent.with_name(file.parent.name.replace("images", "keypoints"))
    points /= file.name.removesuffix(".gz").removesuffix(".nii") + ".csv"
    if points.exists():
        row[f"{prefix}landmarks"] = points.relative_to(root).as_posix()
    return row


def with_headers(rows: list[Row], folder: Path) -> Iterator[Path]:
    """Write Learn2Reg's voxel coordinates, which have no header, as CSVs with the columns ``i,j,k``.

    The rows then name these files, each of which is yielded.

    Raises:
        InputError: A file has something else than three numbers a line.
    """
    for row in rows:
        for column in [column for column in row if column.endswith("landmarks")]:
            points = folder / row[column]
            lines = [line for line in points.read_text(encoding="utf-8").splitlines() if line.strip()]
            number = r"\s*[-+.\deE]+\s*"
            wrong = next((line for line in lines if not re.fullmatch(f"{number},{number},{number}", line)), None)
            if wrong is not None or not lines:
                raise InputError(f"{row[column]} should have three numbers a line, got {wrong!r}.")
            target = points.with_suffix(".ijk.csv")
            target.write_text("\n".join(["i,j,k", *lines]) + "\n", encoding="utf-8")
            row[column] = target.relative_to(folder).as_posix()
            yield target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.tar``, ``.tar.gz`` or ``.zip``.

    Raises:
        InputError: A name leads out of the folder, the archive is damaged, or the disk is full.
    """
    bar = {"desc": archive.name, "unit": "file", "disable": not sys.stderr.isatty()}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                outside = [name for name in opened.namelist() if Path(name).is_absolute() or ".." in Path(name).parts]
                if outside:
                    raise InputError(f"{archive} names {outside[0]}, which lies outside of its folder.")
                for info in tqdm(opened.infolist(), **bar):
                    opened.extract(info, folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                for member in tqdm(opened, **bar):
                    opened.extract(member, folder, filter="data")
        else:
            raise InputError(f"{archive} is no .tar, .tar.gz, .tgz or .zip.")
    except tarfile.FilterError as error:
        raise InputError(f"{archive} names a file outside of its folder: {error}.") from error
    except RuntimeError as error:  # of zipfile, for one with a password
        raise InputError(f"{archive} cannot be unpacked: {error}.") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise InputError(f"{folder.parent} is full; make room, or give another output.") from error
        raise InputError(f"{archive} is damaged: {error}. Download it again.") from error


def prepare(name: str, sources: Iterable[Path], output: Path, *, partial: bool = False) -> list[Row]:
    """Unpack archives, check all files, and write the table; the folder changes only when all is right.

    Args:
        name: A key of ``SOURCES``.
        sources: Archives, or the folder of a set that is unpacked: then it is the output as well.
        output: Folder of the files and the table.
        partial: Take a set that lacks subjects.

    Raises:
        InputError: The output is in use, an archive is damaged or another one, or files are missing or do not fit.
    """
    source, given = SOURCES[name], [Path(path) for path in sources]
    for path in given:
        if not path.exists():
            raise MissingFileError(f"No such archive or folder: {path}.")
    if (output / TABLE).exists():
        raise InputError(f"{output / TABLE} exists already; give another folder, or remove it.")
    if any(path.is_dir() for path in given):
        if len(given) > 1 or given[0].resolve() != output.resolve():
            raise InputError(f"{given[0]} is unpacked already; give it as the output too: -o {given[0]}.")
        rows = checked(source, output, partial=partial)
        write_atomically(output / TABLE, lambda part: write_table(rows, Path(part)))
        return rows
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty; give a new folder.")
    part = output.absolute().parent / f"{PART}{output.name}"
    shutil.rmtree(part, ignore_errors=True)  # of a preparation that was killed
    try:
        part.mkdir(parents=True)
        for archive in given:
            unpack(archive, part)
        rows = checked(source, part, partial=partial)
        write_table(rows, part / TABLE)
        if output.exists():
            output.rmdir()
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return rows


def checked(source: Source, folder: Path, *, partial: bool) -> list[Row]:
    """Return the rows of a data set after all its files were read.

    Raises:
        InputError: A file is missing, damaged or does not fit the others; nothing is left of the check.
    """
    rows = source.rows(folder)
    if source.expected and len(rows) != source.expected and not partial:
        raise InputError(
            f"{len(rows)} subjects were found, the set has {source.expected}; download it again, or add --partial."
        )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for row in rows:
        name = row.get("image") or row.get("fixed")
        lacking = [column for column in columns if column not in row]
        if lacking and not partial:
            raise InputError(f"{name} has no {lacking[0]}, which others have; download it again, or add --partial.")
        for column, value in row.items():
            if column not in ("group", "split") and not (folder / value).is_file():
                raise InputError(f"{value} is missing, which {name} belongs to.")
    trial, written = folder / ".check.csv", list[Path]()
    try:
        written.extend(with_headers(rows, folder))
        write_table(rows, trial)
        pairs = read_pairs(trial)
        subjects = read_subjects(trial) if pairs is None else [subject for pair in pairs for subject in pair]
        unique = list(dict.fromkeys(subjects))
        check_subjects(unique, source.needs, (1, 1, 1), pairs)
        entries = survey(unique, progress_bar(len(unique)))
        serious = [finding for entry in entries for finding in entry.findings if finding.serious]
        if serious:
            more = f" ({len(serious)} files have faults; `learnreg check` lists them)" if len(serious) > 1 else ""
            raise InputError(f"{serious[0].file.relative_to(folder)}: {serious[0].problem}{more}.")
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    finally:
        trial.unlink(missing_ok=True)
    return rows


def progress_bar(total: int) -> Callable[[Iterable[T]], Iterable[T]]:
    """Return a progress bar over images."""
    return lambda items: tqdm(items, total=total, desc="check", unit="image", disable=not sys.stderr.isatty())


def write_table(rows: list[Row], file: Path) -> None:
    """Write the rows; a column that a row lacks is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(SOURCES))
    parser.add_argument("source", type=Path, nargs="+", help="archives (.tar, .tar.gz, .zip), or the unpacked folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder, or the unpacked one")
    parser.add_argument("--partial", action="store_true", help="take a set that lacks subjects")
    options = parser.parse_args(arguments)
    with reporting_errors():
        rows = prepare(options.set, options.source, options.output, partial=options.partial)
        blocks = {split: sum(row["split"] == split for row in rows) for split in ("train", "validation")}
        print(f"Wrote {options.output / TABLE}: {blocks['train']} to train, {blocks['validation']} to validate")


if __name__ == "__main__":
    main()
