"""Read and write transform files of ITK, ANTs, FSL, FreeSurfer, Convert3D, BIDS and Learn2Reg."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.transforms.affine import Affine
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import chain
from learnreg.transforms.displacement import Displacement
from learnreg.transforms.field_files import (
    FNIRT_COEFFICIENTS,
    FNIRT_FIELD,
    read_fsl_field,
    read_learn2reg,
    read_x5,
    write_fsl_field,
    write_learn2reg,
    write_x5,
)
from learnreg.transforms.itk import TRANSFORM_SUFFIXES, read_itk, write_itk
from learnreg.transforms.linear_files import (
    c3d_text,
    flirt_text,
    linear_part,
    lta_text,
    matrix_in,
    read_c3d,
    read_flirt,
    read_lta,
)
from learnreg.transforms.sampled import Sampled
from learnreg.typing import PathLike
from learnreg.writing import write_atomically

TransformFormat = Literal[
    "itk", "ants", "fsl", "fsl-relative", "fsl-absolute", "freesurfer", "c3d", "x5", "learn2reg", "learn2reg-half"
]
FORMATS: tuple[str, ...] = get_args(TransformFormat)
BY_SUFFIX = {".lta": "freesurfer", ".x5": "x5", ".npz": "learn2reg"}  # others are ITK's, or need a look inside
SUFFIXES = (*TRANSFORM_SUFFIXES, *BY_SUFFIX)  # that are written, besides those of images
NIFTI = (".nii", ".nii.gz")
AFFINE, WARP = "0GenericAffine.mat", "1Warp.nii.gz"  # of an ANTs pair, after its prefix
NAME_IT = "name the format: format= in Python, --from on the command line"


def read_transform(
    path: PathLike,
    *,
    ndim: int | None = None,
    format: TransformFormat | None = None,
    fixed: Grid | None = None,
    moving: Grid | None = None,
) -> Transform:
    """Read a transform file, from the fixed to the moving space in mm LPS.

    =================== ============================================================================ ==============
    format              files                                                                        needs
    =================== ============================================================================ ==============
    ``itk``             ``.h5``, ``.tfm``, ``.txt``, ``.mat``, ``.xfm``, or a field image in mm
    ``ants``            the prefix of ``0GenericAffine.mat`` and ``1Warp.nii.gz``, or one of both
    ``fsl``             a matrix of flirt, or a warp field (``fsl-relative``, ``fsl-absolute``)      fixed, moving
    ``freesurfer``      ``.lta``, RAS to RAS or voxel to voxel
    ``c3d``             a 4 x 4 matrix of Convert3D or greedy as text, mm RAS
    ``x5``              ``.x5`` of BIDS, as nitransforms writes it
    ``learn2reg``       voxels, ``.npz`` or NIfTI, at full or half size                              fixed, moving
    =================== ============================================================================ ==============

    Args:
        path: The file.
        ndim: Dimension of the images that it is for; ``None`` takes any.
        format: See the table; ``None`` finds it by the suffix and the content, where they leave no doubt.
        fixed: Grid of the fixed image.
        moving: Grid of the moving image.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not a transform, has another dimension, its format is in doubt, or a grid is missing.
        MissingPackageError: A package is not installed.

    Example:
        >>> import pathlib
        >>> rows = ["1 0 0 5", "0 1 0 0", "0 0 1 0", "0 0 0 1"]
        >>> _ = pathlib.Path("shift.mat").write_text(chr(10).join(rows))
        >>> read_transform("shift.mat", format="c3d")(torch.zeros(1, 1, 3))
        tensor([[[-5.,  0.,  0.]]])
    """
    check_format(format)
    file = Path(path)
    if format == "ants":
        return _read_pair(str(path), ndim)
    if not file.exists():
        raise MissingFileError(f"No such transform: {file}. Check the path.")
    found = format or format_of(file)
    if found == "itk":
        return read_itk(file, ndim=ndim)
    if ndim not in (None, 3):
        raise InputError(f"The transform {file} is 3-D, but the images are {ndim}-D.")
    return _read_other(file, found, fixed, moving)


def _read_other(file: Path, found: str, fixed: Grid | None, moving: Grid | None) -> Transform:
    """Read a file of a tool other than ITK."""
    if found == "freesurfer":
        return read_lta(file, fixed, moving)
    if found == "c3d":
        return read_c3d(file)
    if found == "x5":
        return read_x5(file)
    second = _needed(moving, file, found, "moving")
    if found.startswith("fsl") and file.name.endswith(NIFTI):
        absolute = {"fsl-absolute": True, "fsl-relative": False}.get(found)
        return read_fsl_field(file, second, absolute=absolute)
    first = _needed(fixed, file, found, "fixed")
    return read_learn2reg(file, first, second) if found.startswith("learn2reg") else read_flirt(file, first, second)


def check_format(name: str | None) -> None:
    """Raise ``InputError`` for a format that is not known."""
    if name is not None and name not in FORMATS:
        raise InputError(f"Unknown format of transforms {name!r}; choose from {', '.join(FORMATS)}.")


def _needed(grid: Grid | None, file: Path, format: str, which: str) -> Grid:
    option = {"fixed": "--reference", "moving": "--moving"}[which]
    if grid is None:
        raise InputError(
            f"{file}: coordinates of {format} depend on the {which} image; name it with {which}= in Python, {option} "
            "on the command line."
        )
    if grid.ndim != 3:
        raise InputError(f"{file}: transforms of {format} are 3-D, the {which} image is {grid.ndim}-D.")
    return grid


def format_of(path: PathLike) -> TransformFormat:
    """Return the format of a file by its suffix, and by its content where several tools use one suffix.

    Raises:
        InputError: Two formats look the same, or the file holds something that is not a transform.

    Example:
        >>> format_of("bold_to_t1.lta")
        'freesurfer'
    """
    file = Path(path)
    if file.suffix in BY_SUFFIX:
        return BY_SUFFIX[file.suffix]  # type: ignore[return-value]
    if file.suffix in (".txt", ".mat") and _is_matrix(file):
        raise InputError(
            f"{file} holds a 4 x 4 matrix, as FSL and Convert3D or greedy write it, but with different meanings; "
            f"{NAME_IT}, fsl or c3d."
        )
    return _format_of_field(file) if file.name.endswith(NIFTI) else "itk"


def _is_matrix(file: Path) -> bool:
    with file.open("rb") as stream:
        begin = stream.read(4096)
    try:
        return matrix_in(begin.decode("ascii")) is not None
    except UnicodeDecodeError:
        return False


def _format_of_field(file: Path) -> TransformFormat:
    """Tell the fields in NIfTI files apart: ITK's are 5-D, FSL's and Learn2Reg's 4-D."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        header = nibabel.load(file).header  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, ImageFileError):
        return "itk"  # whose reader says what is wrong
    shape, intent = header.get_data_shape(), int(header["intent_code"])
    if intent in (FNIRT_FIELD, *FNIRT_COEFFICIENTS):
        return "fsl"
    if len(shape) != 4 or shape[3] != 3:
        return "itk"
    raise InputError(
        f"{file} is a field of shape {shape}, as FSL and Learn2Reg have them; {NAME_IT}, fsl or learn2reg."
    )


def _read_pair(prefix: str, ndim: int | None) -> Transform:
    """Read the affine map and the field of ANTs, or one of them; points go through the field first."""
    base = prefix.removesuffix(AFFINE).removesuffix(WARP)
    files = [file for file in (Path(f"{base}{WARP}"), Path(f"{base}{AFFINE}")) if file.exists()]
    if not files:
        raise MissingFileError(f"No such transform: {base}{AFFINE} or {base}{WARP}. Check the prefix.")
    return chain(*(read_itk(file, ndim=ndim) for file in files))


def output_format(path: PathLike, format: TransformFormat | None = None) -> TransformFormat:
    """Return the format in which a file is written; ITK's unless the suffix says another.

    Raises:
        InputError: The format has no such suffix.
    """
    check_format(format)
    file = Path(path)
    found = format or BY_SUFFIX.get(file.suffix, "itk")
    allowed = {
        "itk": None,
        "ants": None,
        "fsl": (".mat", ".txt", *NIFTI),
        "fsl-relative": NIFTI,
        "fsl-absolute": (),
        "freesurfer": (".lta",),
        "c3d": (".mat", ".txt"),
        "x5": (".x5",),
        "learn2reg": (".npz", *NIFTI),
        "learn2reg-half": (".npz", *NIFTI),
    }[found]
    if allowed == ():
        raise InputError("FSL's fields are written relative; take fsl or fsl-relative.")
    if allowed is not None and not file.name.endswith(allowed):
        raise InputError(f"{file}: {found} writes {', '.join(allowed)}; give one of these suffixes.")
    return found  # type: ignore[return-value]


def write_transform(
    transform: Transform,
    grid: Grid,
    path: PathLike,
    *,
    format: TransformFormat | None = None,
    moving: Grid | None = None,
) -> None:
    """Write a transform for another program; the suffix sets the format, unless it is named.

    ITK's ``.h5``, ``.tfm`` and ``.txt`` hold a composite transform, ``.mat`` one linear map (ANTs' affine), and an
    image file a displacement field in mm; ITK, ANTs and 3D Slicer read them. FSL's field is relative.
    ``learn2reg-half`` has half the samples per axis.

    Args:
        transform: From the fixed to the moving space.
        grid: The fixed grid.
        path: The file; it appears only when it is complete. For ``ants``, the prefix of two files.
        format: See :func:`read_transform`; ``None`` is that of the suffix, and ITK's where several tools use it.
        moving: Grid of the moving image, for FSL, FreeSurfer and Learn2Reg.

    Raises:
        InputError: The transform is a batch of several, deforms and the format is linear, or cannot be written; or a
            grid is missing.
        MissingPackageError: A package is not installed.

    Example:
        >>> grid = learnreg.Grid.regular((8, 8, 8))
        >>> write_transform(learnreg.Affine.translation([1.0, 2.0, 3.0]), grid, "shift.tfm")
        >>> read_transform("shift.tfm")(torch.zeros(1, 1, 3))
        tensor([[[1., 2., 3.]]])
    """
    found, file = output_format(path, format), Path(path)
    if found == "itk":
        write_itk(transform, grid, path)
        return
    if found == "ants":
        _write_pair(transform, grid, str(path))
        return
    fixed = _needed(grid, file, found, "fixed")
    if found in ("c3d", "freesurfer") or (found == "fsl" and not file.name.endswith(NIFTI)):
        text = _matrix_text(linear_part(transform, file, found), found, file, fixed, moving)
        write_atomically(file, lambda part: Path(part).write_text(text, encoding="ascii"))
    elif found == "x5":
        write_atomically(file, lambda part: write_x5(transform, fixed, part))
    else:
        other = _needed(moving, file, found, "moving")
        if found.startswith("fsl"):
            write_atomically(file, lambda part: write_fsl_field(transform, fixed, other, part))
        else:
            half = found == "learn2reg-half"
            write_atomically(file, lambda part: write_learn2reg(transform, fixed, other, part, half=half))


def _matrix_text(affine: Affine, found: str, file: Path, fixed: Grid, moving: Grid | None) -> str:
    if found == "c3d":
        return c3d_text(affine)
    other = _needed(moving, file, found, "moving")
    return lta_text(affine, fixed, other) if found == "freesurfer" else flirt_text(affine, fixed, other)


def _write_pair(transform: Transform, grid: Grid, prefix: str) -> None:
    """Write the affine maps at the end as ANTs' matrix, and all before them as its field."""
    whole = transform if isinstance(transform, Sampled) else Sampled(transform, grid)
    base, parts = prefix.removesuffix(AFFINE).removesuffix(WARP), whole.parts()
    field = chain(*parts[: whole.deforming]) if whole.deforming else Affine.identity(whole.ndim)
    linear = chain(*(parts[whole.deforming :] or (Affine.identity(whole.ndim),)))
    write_itk(Displacement(field.displacement(grid), grid), grid, f"{base}{WARP}")
    write_itk(linear, grid, f"{base}{AFFINE}")
