"""Linear transforms of FSL (flirt), FreeSurfer (.lta) and Convert3D or greedy (a 4 x 4 matrix)."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.sampled import Sampled
from learnreg.transforms.spaces import RAS, Matrix, affine_of, from_lps, fsl_space, to_lps

VOXELS, PHYSICAL = 0, 1  # types of an .lta: voxel to voxel, and RAS to RAS


def linear_part(transform: Transform, path: Path, tool: str) -> Affine:
    """Return a 3-D transform without fields as one affine map.

    Raises:
        InputError: It deforms, is 2-D, or is a batch of several.
    """
    whole = transform.transform if isinstance(transform, Sampled) else transform
    parts = getattr(whole, "transforms", (whole,))
    linear = [part for part in parts if isinstance(part, Affine)]
    if len(linear) < len(parts):
        raise InputError(f"{path}: a matrix of {tool} holds a linear transform, this one deforms; write a field.")
    found = reduce(Affine.then, linear)
    if found.ndim != 3 or len(found.matrix) != 1:
        raise InputError(f"{path}: {tool} has 3-D matrices; this transform is {found.ndim}-D, or a batch.")
    return found


def matrix_in(text: str) -> Matrix | None:
    """Return the 4 x 4 matrix that a text consists of; ``None`` if it is anything else."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if [len(line) for line in lines] != [4] * 4:
        return None
    try:
        return np.array(lines, dtype=np.float64)
    except ValueError:
        return None


def read_matrix(path: Path) -> Matrix:
    """Read a file that consists of an invertible 4 x 4 matrix.

    Raises:
        InputError: It has anything else.
    """
    matrix = matrix_in(text_of(path))
    if matrix is None:
        raise InputError(f"{path} is not a matrix of 4 x 4 numbers as text; check the format that you name.")
    return checked(matrix, path)


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: It is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as text; check the format that you name.") from error


def checked(matrix: Matrix, path: Path) -> Matrix:
    """Return a matrix that is homogeneous, finite and invertible.

    Raises:
        InputError: It is not.
    """
    whole = np.isfinite(matrix).all() and np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6)
    if not whole or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise InputError(f"{path} holds a matrix that is not finite, not invertible, or has another last row.")
    return matrix


def matrix_text(matrix: Matrix) -> str:
    """Return a matrix as lines of numbers."""
    return "".join("  ".join(f"{value:.10f}" for value in row) + "\n" for row in matrix)


def read_flirt(path: Path, fixed: Grid, moving: Grid) -> Affine:
    """Read a matrix of flirt, which maps the moving image (``-in``) to the fixed one (``-ref``) in FSL's mm."""
    return to_lps(np.linalg.inv(read_matrix(path)), fsl_space(fixed), fsl_space(moving))


def flirt_text(affine: Affine, fixed: Grid, moving: Grid) -> str:
    """Return the text of a matrix of flirt."""
    return matrix_text(np.linalg.inv(from_lps(affine, fsl_space(fixed), fsl_space(moving))))


def read_c3d(path: Path) -> Affine:
    """Read a matrix of Convert3D or greedy, which maps the fixed to the moving image in mm RAS."""
    return to_lps(read_matrix(path), RAS, RAS)


def c3d_text(affine: Affine) -> str:
    """Return the text of a matrix of Convert3D or greedy."""
    return matrix_text(from_lps(affine, RAS, RAS))


def read_lta(path: Path, fixed: Grid | None, moving: Grid | None) -> Affine:
    """Read an ``.lta`` of FreeSurfer, RAS to RAS or voxel to voxel.

    Its matrix maps the moving (src) to the fixed image (dst).

    nitransforms reads the matrix in single precision, stops at names with spaces, and uses a geometry that the file
    calls invalid, so the few lines are read here.

    Args:
        path: The file.
        fixed: In place of the geometry of "dst volume info", if that is invalid.
        moving: In place of the geometry of "src volume info", if that is invalid.

    Raises:
        InputError: The file is damaged, has several transforms, or another type; or a grid is missing.
    """
    lines = [line.strip() for line in text_of(path).splitlines() if line.strip() and not line.strip().startswith("#")]
    try:
        values = dict(_assignment(line) for line in lines if "=" in line and not line.startswith("filename"))
        kind, count = int(values["type"].split()[0]), int(values["nxforms"].split()[0])
        start = lines.index("1 4 4") + 1
        matrix = np.array([line.split()[:4] for line in lines[start : start + 4]], dtype=np.float64)
        volumes = [_geometry(lines[lines.index(f"{name} volume info") :]) for name in ("src", "dst")]
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is not an .lta of FreeSurfer, or is damaged; write it again.") from error
    if count != 1 or kind not in (VOXELS, PHYSICAL):
        raise InputError(
            f"{path} holds {count} transform(s) of type {kind}; one RAS to RAS (1) or voxel to voxel (0) is read: "
            "convert it with FreeSurfer's lta_convert."
        )
    source, target = RAS, RAS
    if kind == VOXELS:
        source, target = (
            _voxels(volume, grid, f"{path}, {name}")
            for volume, grid, name in zip(volumes, (moving, fixed), ("moving", "fixed"), strict=True)
        )
    return to_lps(np.linalg.inv(checked(matrix, path)), target, source)


def _assignment(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name.strip(), value.split("#")[0].strip()


def _geometry(lines: list[str]) -> Matrix | None:
    """Return the affine of the volume that begins here, voxel index to mm RAS; ``None`` if it is said to be invalid."""
    values = dict(_assignment(line) for line in lines[1:9])
    if int(values["valid"]) != 1:
        return None
    size, step, x, y, z, center = (
        np.array(values[name].split(), dtype=np.float64)
        for name in ("volume", "voxelsize", "xras", "yras", "zras", "cras")
    )
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x, y, z], axis=1) * step
    affine[:3, 3] = center - affine[:3, :3] @ (size / 2)  # FreeSurfer's center is the voxel of index size / 2
    return affine


def _voxels(affine: Matrix | None, grid: Grid | None, name: str) -> Matrix:
    """Return the space of voxel indices of a volume."""
    if affine is not None:
        return np.asarray(np.linalg.inv(affine) @ RAS)
    if grid is None:
        raise InputError(f"{name}: the file does not describe this image; name the {name.split()[-1]} image, too.")
    return np.linalg.inv(affine_of(grid))


def lta_text(affine: Affine, fixed: Grid, moving: Grid) -> str:
    """Return the text of an ``.lta``, RAS to RAS."""
    matrix = np.linalg.inv(from_lps(affine, RAS, RAS))
    rows = [" ".join(f"{value:.15e}" for value in row) for row in matrix]
    head = ["type      = 1", "nxforms   = 1", "mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4", *rows]
    return "\n".join([*head, *_volume_info("src", moving), *_volume_info("dst", fixed), ""])


def _volume_info(name: str, grid: Grid) -> list[str]:
    affine = RAS @ affine_of(grid)
    size, step = np.array(grid.shape[::-1]), np.linalg.norm(affine[:3, :3], axis=0)
    vectors = {
        "voxelsize": step,
        **{f"{axis}ras  ": affine[:3, k] / step[k] for k, axis in enumerate("xyz")},
        "cras  ": affine[:3, :3] @ (size / 2) + affine[:3, 3],
    }
    return [
        f"{name} volume info",
        "valid = 1  # volume info valid",
        "filename = unknown",
        "volume = " + " ".join(map(str, size)),
        *(f"{key} = " + " ".join(f"{value:.15e}" for value in vector) for key, vector in vectors.items()),
    ]
