"""The anatomical images of a BIDS data set, as rows of a table."""

from __future__ import annotations

import csv
from pathlib import Path

from learnreg.errors import InputError

CONTRASTS = "T1w", "T2w", "FLAIR", "PDw"  # the first that a data set has
SUFFIXES = ".nii.gz", ".nii"


def is_bids(folder: Path) -> bool:
    """Return whether a folder holds ``sub-*/`` with anatomical images."""
    return any(folder.glob("sub-*/anat")) or any(folder.glob("sub-*/ses-*/anat"))


def bids_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each T1-weighted image, or of the first contrast that the data set has.

    Labels are the ``dseg`` and masks the ``desc-brain_mask`` of the same subject, session and run in the data set or in
    ``derivatives/``. The columns of ``participants.tsv`` come with each row.

    Args:
        folder: The data set.

    Raises:
        InputError: There are no images, or several segmentations of one image.
    """
    for contrast in CONTRASTS:
        images = [file for suffix in SUFFIXES for file in _anatomy(folder, f"*_{contrast}{suffix}")]
        if images:
            break
    else:
        raise InputError(f"{folder} has sub-*/ folders, but no image of {', '.join(CONTRASTS)} in anat/.")
    people = _participants(folder / "participants.tsv")
    rows = []
    for image in sorted(images):
        subject = image.relative_to(folder).parts[0]
        begin = image.name.rpartition(f"_{contrast}")[0]
        rows.append(
            {
                **people.get(subject, {}),
                "image": str(image),
                "labels": _derived(folder, begin, "dseg"),
                "mask": _derived(folder, begin, "desc-brain_mask"),
                "group": subject,
            }
        )
    return rows


def _anatomy(folder: Path, name: str) -> list[Path]:
    return [file for place in ("sub-*/anat", "sub-*/ses-*/anat") for file in folder.glob(f"{place}/{name}")]


def _derived(folder: Path, begin: str, kind: str) -> str:
    """Return the file of one kind that belongs to an image; one in another space does not."""
    places = [folder, *sorted(path for path in folder.glob("derivatives/*") if path.is_dir()), folder / "derivatives"]
    found = [
        file
        for place in places
        for suffix in SUFFIXES
        for file in _anatomy(place, f"{begin}_*{kind}{suffix}") + _anatomy(place, f"{begin}_{kind}{suffix}")
        if "_space-" not in file.name
    ]
    found = list(dict.fromkeys(found))
    plain = [file for file in found if file.name.startswith(f"{begin}_{kind}.")]
    if len(plain or found) > 1:
        raise InputError(
            f"{begin} has several files of {kind}: {found[0]} and {found[1]}; list the images with the right ones in "
            "a CSV or TSV (image,labels,mask,group)."
        )
    best = plain or found
    return str(best[0]) if best else ""


def _participants(file: Path) -> dict[str, dict[str, str]]:
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {row.get("participant_id") or "": row for row in rows}
