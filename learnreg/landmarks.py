"""Read landmarks from CSV, elastix and 3D Slicer files."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.typing import PathLike, PointTensor
from learnreg.writing import write_atomically

FORMATS = "a CSV with the columns x,y,z (mm LPS) or i,j,k (voxels from 0), elastix' .txt, Slicer's .fcsv or .mrk.json"
AXES = ("xyz", "ijk")
NAMED = re.compile(r"(.*[_ ])?[xyzijk]")  # of a column: x, or fixed_x


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Landmarks of one image, as a file lists them.

    Args:
        points: ``(1, K, D)``, mm LPS.
        names: Of each, if the file names all of them.
        file: Where they come from, for error messages.
    """

    points: PointTensor
    names: tuple[str, ...] | None
    file: Path

    def by_name(self) -> Landmarks:
        """Return the landmarks in the order of their names; in that of the file without names."""
        if self.names is None:
            return self
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        return Landmarks(self.points[:, order], tuple(self.names[k] for k in order), self.file)


def pair_landmarks(fixed: Landmarks, moving: Landmarks) -> tuple[PointTensor, PointTensor]:
    """Pair the landmarks of two files: by name if both name them, else by row.

    Lists that share no name, such as F-1, F-2 and M-1, M-2, are numbered; they are paired by row.

    Returns:
        Landmarks of the fixed and of the moving image, ``(1, K, D)`` each.

    Raises:
        InputError: A name is missing in one file or occurs twice, or the numbers of landmarks differ.
    """
    if fixed.names is not None and moving.names is not None and set(fixed.names) & set(moving.names):
        if fixed.names == moving.names:
            return fixed.points, moving.points
        for landmarks in (fixed, moving):
            twice = sorted(name for name, count in Counter(landmarks.names).items() if count > 1)
            if twice:
                raise InputError(f"{landmarks.file} names {', '.join(twice)} more than once; give each its own name.")
        missing = sorted(set(fixed.names) ^ set(moving.names))
        if missing:
            raise InputError(
                f"{', '.join(missing)} occurs in only one of {fixed.file} and {moving.file}; landmarks are paired by "
                "name. Add or delete it."
            )
        return fixed.points, moving.points[:, [moving.names.index(name) for name in fixed.names]]
    if fixed.points.shape[1] != moving.points.shape[1]:
        raise InputError(
            f"{fixed.file} has {fixed.points.shape[1]} landmarks and {moving.file} has {moving.points.shape[1]}; "
            "without names in common they are paired by row. Give as many in both."
        )
    return fixed.points, moving.points


def read_landmarks(path: PathLike, grid: Grid) -> PointTensor:
    """Read the landmarks of one image, in the order of the file; see :func:`read_named_landmarks`."""
    return read_named_landmarks(path, grid).points


def read_named_landmarks(path: PathLike, grid: Grid) -> Landmarks:
    """Read the landmarks of one image with their names.

    Args:
        path: A CSV with the columns ``x,y[,z]`` (mm LPS) or ``i,j[,k]`` (voxels from 0), a ``.txt`` of elastix
            (``point`` or ``index``), or a ``.fcsv`` or ``.mrk.json`` of 3D Slicer.
            A CSV may have a column ``name`` or ``label``.
        grid: Grid of the image.

    Returns:
        Points and names.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file holds no points of this dimension.
    """
    file = _existing(path)
    if file.name.lower().endswith(".mrk.json"):
        return _from_markups(file, grid)
    readers = {".txt": _from_elastix, ".fcsv": _from_fcsv}
    if file.suffix.lower() in readers:
        return readers[file.suffix.lower()](file, grid)
    (points,), names = _from_csv(file, [grid])
    return Landmarks(points, names, file)


def read_landmark_pairs(path: PathLike, fixed: Grid, moving: Grid) -> tuple[PointTensor, PointTensor]:
    """Read the landmarks of both images from one CSV, the columns of the fixed image first.

    ``f_i,f_j,f_k,m_i,m_j,m_k``.

    Args:
        path: The CSV.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.

    Returns:
        Landmarks of the fixed and of the moving image, ``(1, K, D)`` each, mm LPS.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The columns are not named as above, or a value is not a number.
    """
    (first, second), _ = _from_csv(_existing(path), [fixed, moving])
    return first, second


def in_voxels(path: PathLike) -> bool:
    """Return whether a file gives points in voxels, whose place depends on an image.

    Raises:
        MissingFileError: The file does not exist.
    """
    first = (_text(_existing(path)).splitlines() or [""])[0].strip().lower()
    names = [name.strip() for name in first.split(",")]
    return first == "index" or any(NAMED.fullmatch(name) and name[-1:] == "i" for name in names)


def write_landmarks(points: PointTensor, path: PathLike, *, names: Sequence[str] | None = None) -> None:
    """Write landmarks as a CSV with the columns ``x,y[,z]`` (mm LPS), and ``name`` if they are named.

    Args:
        points: ``(1, K, D)``, mm LPS.
        path: The file; it appears only when it is complete.
        names: Of each landmark.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> write_landmarks(torch.tensor([[[1.0, 2.0, 3.5]]]), "points.csv", names=["apex"])
        >>> read_landmarks("points.csv", learnreg.Grid.regular((8, 8, 8)))
        tensor([[[1.0000, 2.0000, 3.5000]]])
    """
    rows = [[repr(round(value, 6)) for value in row] for row in points[0].detach().double().cpu().tolist()]

    def write(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*"xyz"[: points.shape[-1]], *(["name"] if names else [])])
            writer.writerows([*row, *([names[k]] if names else [])] for k, row in enumerate(rows))

    write_atomically(path, write)


def _existing(path: PathLike) -> Path:
    file = Path(path)
    if not file.exists():
        raise MissingFileError(f"No such landmarks: {file}. Check the path.")
    return file


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as landmarks: {error}. Give {FORMATS}.") from error


def _from_csv(file: Path, grids: list[Grid]) -> tuple[list[PointTensor], tuple[str, ...] | None]:
    """Read one set of points per grid, from as many groups of columns, and the names of the rows."""
    rows = list(csv.reader(_text(file).splitlines()))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    ndim = grids[0].ndim
    for axes in AXES:
        columns = [c for c, name in enumerate(header) if NAMED.fullmatch(name) and name[-1] in axes[:ndim]]
        if len(columns) != ndim * len(grids) or any(name[-1:] == axes[2] for name in header) != (ndim == 3):
            continue
        values = _numbers([[row[c] for c in columns if c < len(row)] for row in rows[1:] if row], file)
        groups = values.split(ndim, dim=1)
        points = [_placed(group, grid, file, index=axes == "ijk") for group, grid in zip(groups, grids, strict=True)]
        named = next((c for c, name in enumerate(header) if name in ("name", "label")), None)
        return points, None if named is None else _names([row[named] for row in rows[1:] if row])
    count = f"{ndim} columns" if len(grids) == 1 else f"{ndim} columns for each of the two images"
    found = ", ".join(header)[:200] or "an empty file"
    raise InputError(f"{file} needs {count} named x,y,z or i,j,k, got {found}. Add a first line with the names.")


def _names(names: Sequence[object]) -> tuple[str, ...] | None:
    """Return the names of all landmarks; ``None`` if one has none."""
    given = tuple(str(name).strip() for name in names if name is not None)
    return given if given and len(given) == len(names) and all(given) else None


def _from_elastix(file: Path, grid: Grid) -> Landmarks:
    lines = [line.split() for line in _text(file).splitlines() if line.strip()]
    if len(lines) < 2 or lines[0] not in (["point"], ["index"]):
        raise InputError(f"{file} is not a point list of elastix; its first line must be `point` or `index`.")
    return Landmarks(_placed(_numbers(lines[2:], file), grid, file, index=lines[0] == ["index"]), None, file)


def _from_fcsv(file: Path, grid: Grid) -> Landmarks:
    lines = _text(file).splitlines()
    said = [line.partition("=")[2].strip() for line in lines if line.startswith("# CoordinateSystem")]
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    if any(len(row) < 4 for row in rows):
        raise InputError(f"{file} has a row without x, y and z; export it again from 3D Slicer.")
    points = _numbers([row[1:4] for row in rows], file) * _to_lps(said[0] if said else "RAS")
    # The columns of a .fcsv are id, x, y, z, four of the orientation, three flags, label, ...
    return Landmarks(_placed(points, grid, file, index=False), _names([(row[11:] or [""])[0] for row in rows]), file)


def _from_markups(file: Path, grid: Grid) -> Landmarks:
    try:
        (markup, *_) = json.loads(_text(file))["markups"]
        rows = [list(point["position"]) for point in markup["controlPoints"]]
        names = _names([point.get("label") for point in markup["controlPoints"]])
        system = markup.get("coordinateSystem", "LPS")
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a value of another kind
        raise InputError(f"{file} is not a markups file of 3D Slicer; give {FORMATS}.") from error
    return Landmarks(_placed(_numbers(rows, file) * _to_lps(system), grid, file, index=False), names, file)


def _to_lps(system: str) -> torch.Tensor:
    """Return the signs that convert a coordinate system to LPS.

    Older files of 3D Slicer write 0 for RAS and 1 for LPS.
    """
    return torch.tensor([1.0, 1.0, 1.0] if system in ("LPS", "1") else [-1.0, -1.0, 1.0], dtype=torch.float64)


def _numbers(rows: Sequence[Sequence[str | float]], file: Path) -> torch.Tensor:
    try:
        values = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file} has something else than numbers where a landmark should be: {error}. Correct it, or write nan "
            "where a landmark is not marked."
        ) from error
    if values.ndim != 2:
        raise InputError(f"{file} holds no landmarks; give {FORMATS}.")
    if values.isinf().any():
        raise InputError(f"{file} has infinite coordinates; correct them, or write nan where a landmark is not marked.")
    return values


def _placed(values: torch.Tensor, grid: Grid, file: Path, *, index: bool) -> PointTensor:
    if values.shape[1] != grid.ndim:
        raise InputError(
            f"{file} has {values.shape[1]}-D landmarks and the image is {grid.ndim}-D; give {grid.ndim}-D ones."
        )
    points = values.unsqueeze(0).to(grid.device)
    if index:
        linear, origin = grid.affine[:1, : grid.ndim, : grid.ndim].double(), grid.origin[:1].double()
        points = points @ linear.mT + origin.unsqueeze(1)
    return points.to(grid.dtype)
