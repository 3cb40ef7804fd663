"""Which subjects or pairs of a data set train, and which validate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from learnreg.data.files import content_of, parts_of, samples_of
from learnreg.data.formats import Pair, Subject
from learnreg.errors import InputError

NAMES = "train", "validation", "test"
Choice = Sequence[int] | Sequence[str] | None
Item = Subject | Pair
T = TypeVar("T", Subject, Pair)


def chosen(name: str, items: Sequence[T], choice: Choice, data: object) -> list[T]:
    """Return the subjects or pairs of a block.

    Args:
        name: ``"train"``, ``"validation"`` or ``"test"``.
        items: The data set.
        choice: ``[first, last)`` positions; names of images or groups; or ``None`` for the items whose column ``split``
            is ``name``.
        data: The data set, for error messages.

    Raises:
        InputError: The positions do not lie within the data, a name is unknown, or the data have no column ``split``.
    """
    kind = "pairs" if items and isinstance(items[0], tuple) else "images"
    if choice is None:
        if not any(_subjects(item)[0].split for item in items):
            raise InputError(
                f"{data} does not tell which {kind} to take for data.{name}; give data.{name}=[first,last], a list of "
                "names, data.folds and data.fold, or a column `split` (train, validation, test)."
            )
        return [item for item in items if _subjects(item)[0].split == name]
    names = [value for value in choice if isinstance(value, str)]
    if names:
        return _by_name(name, items, names, data)
    first, last = positions(name, choice)
    if not 0 <= first < last <= len(items):
        raise InputError(f"data.{name}=[{first}, {last}] does not lie within the {len(items)} {kind} of {data}.")
    return list(items[first:last])


def positions(name: str, choice: Choice) -> tuple[int, int]:
    """Return ``[first, last)`` of a block.

    Raises:
        InputError: There are not two numbers.
    """
    ends = [int(value) for value in choice or ()]
    if len(ends) != 2:
        raise InputError(f"data.{name} takes [first, last) or names in quotes, got {ends}.")
    return ends[0], ends[1]


def _by_name(name: str, items: Sequence[T], names: Sequence[str], data: object) -> list[T]:
    known = {known for item in items for subject in _subjects(item) for known in (subject.name, subject.group)}
    unknown = [one for one in names if one not in known]
    if unknown:
        examples = ", ".join(sorted(one for one in known if one)[:3])
        raise InputError(f"data.{name} names {unknown[0]!r}, which {data} does not have; it has {examples}, ...")
    wanted = set(names)
    return [item for item in items if all({s.name, s.group} & wanted for s in _subjects(item))]


def fold_of(items: Sequence[T], folds: int, fold: int) -> tuple[list[T], list[T]]:
    """Split a data set into ``folds`` parts, and return all but one part, and that part.

    A group is in one part, and the parts are as equal in size as the groups allow. Items whose column ``split`` is
    ``test`` are left out.

    Args:
        items: Subjects or pairs.
        folds: Number of parts, at least 2.
        fold: The part to validate with, from 0.

    Raises:
        InputError: There are fewer groups than parts, or no such part.
    """
    if not (folds >= 2 and 0 <= fold < folds):
        raise InputError(f"data.fold is a number from 0 to data.folds - 1, got fold={fold} of folds={folds}.")
    items = [item for item in items if _subjects(item)[0].split != "test"]
    groups = _connected(items)
    if len(groups) < folds:
        raise InputError(f"data.folds={folds} needs as many groups of images, got {len(groups)}.")
    part: dict[int, int] = {}
    sizes = [0] * folds
    for group in sorted(groups, key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(group)
        part |= dict.fromkeys(group, smallest)
    return (
        [item for k, item in enumerate(items) if part[k] != fold],
        [item for k, item in enumerate(items) if part[k] == fold],
    )


def _connected(items: Sequence[Item]) -> list[list[int]]:
    """Return the positions of items in lists that share no image and no group, in the order of their first items."""
    keys = [{(s.image, None) for s in _subjects(i)} | {(None, s.group) for s in _subjects(i) if s.group} for i in items]
    shared = set.intersection(*keys) if len(keys) > 1 else set()  # such as the atlas of all pairs
    numbers = {key: k for k, key in enumerate(dict.fromkeys(key for some in keys for key in some - shared))}
    edges = [(k, len(items) + numbers[key]) for k, some in enumerate(keys) for key in some - shared]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    size = len(items) + len(numbers)
    _, component = connected_components(coo_array((np.ones(len(edges)), (rows, columns)), shape=(size, size)))
    groups: dict[int, list[int]] = {}
    for k in range(len(items)):
        groups.setdefault(int(component[k]), []).append(k)
    return list(groups.values())


def check_apart(blocks: Mapping[str, Sequence[Subject]], *, content: bool = False) -> None:
    """Check that no image and no group is in two blocks.

    Args:
        blocks: Subjects by the name of their block.
        content: Compare the content of files, too, see :func:`duplicates`.

    Raises:
        InputError: Two blocks share a file, a group, or the content of two files.
    """
    keys: list[tuple[str, Callable[[Subject], str | None]]] = [
        ("the same file", lambda subject: str(subject.image.resolve())),
        ("the same group ({})", lambda subject: subject.group),
    ]
    placed = [(name, subject) for name, subjects in blocks.items() for subject in subjects]
    for what, key in keys:
        _check_key(placed, what, {subject: key(subject) for _, subject in placed})
    if content:
        subjects = dict.fromkeys(subject for _, subject in placed)
        same = duplicates([subject.image for subject in subjects])
        number = {file: str(k) for k, files in enumerate(same) for file in files}
        _check_key(placed, "the same content", {subject: number.get(subject.image) for subject in subjects})


def _check_key(placed: Sequence[tuple[str, Subject]], what: str, keys: Mapping[Subject, str | None]) -> None:
    first: dict[str, tuple[str, Subject]] = {}
    for name, subject in placed:
        key = keys[subject]
        if key is None:
            continue
        before, other = first.setdefault(key, (name, subject))
        if before != name:
            raise InputError(
                f"{other.image} in data.{before} and {subject.image} in data.{name} have {what.format(key)}: what is "
                "validated would have been trained on. Move one of them to the other block."
            )


def duplicates(files: Sequence[Path]) -> list[list[Path]]:
    """Return the lists of files with the same content; only files that are alike in size and samples are read.

    Raises:
        InputError: A file cannot be read.
    """

    def equal(files: Sequence[Path], key: Callable[[Path], object]) -> list[list[Path]]:
        keys = {file: str(key(file)) for file in files}
        lists = [list(found) for _, found in groupby(sorted(files, key=keys.__getitem__), keys.__getitem__)]
        return [found for found in lists if len(found) > 1]

    sized = equal(list(dict.fromkeys(files)), lambda file: [part.stat().st_size for part in parts_of(file)])
    alike = [found for like in sized for found in equal(like, lambda file: list(map(samples_of, parts_of(file))))]
    return [found for like in alike for found in equal(like, lambda file: content_of([file]))]


def _subjects(item: Item) -> tuple[Subject, ...]:
    return item if isinstance(item, tuple) else (item,)
