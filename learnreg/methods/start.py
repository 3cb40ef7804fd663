"""Initial alignments by name, in place of those that a method chooses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from learnreg.configs.models import choices, model_file
from learnreg.errors import InputTypeError, MissingFileError
from learnreg.image import Image
from learnreg.methods.iterative import IterativeMethod
from learnreg.methods.one_shot import OneShotMethod
from learnreg.networks.checkpoint import load_checkpoint, of_dimension
from learnreg.objective import Objective
from learnreg.optimization import CenterOfMass, Moments
from learnreg.similarity import MutualInformation
from learnreg.transforms import Affine, Transform
from learnreg.transforms.files import read_transform
from learnreg.typing import PathLike

WORDS = ("com", "moments", "identity", "universal")
StartName: TypeAlias = str  # one of WORDS, or the name of another model
Initial: TypeAlias = Transform | StartName | PathLike


def is_start(name: str) -> bool:
    """Return whether a text names a way to find an initial alignment.

    Args:
        name: One of ``WORDS``, or the name of a model, unless a file has this name.

    Raises:
        InputError: See :func:`learnreg.configs.models.model_file`.
    """
    if name in WORDS or Path(name).expanduser().exists():
        return name in WORDS
    try:
        return model_file(name).is_file()
    except MissingFileError:
        return False


def start_of(initial: Initial | None, fixed: Image, moving: Image) -> Transform | StartName | None:
    """Return a transform, or the name of a way to find one; anything else that is given is the path of a file.

    Args:
        initial: ``"com"``, ``"moments"``, ``"identity"``, ``"universal"``, the name of another model, the path of a
            transform, or a transform; ``"./com"`` is a file.
        fixed: The reference.
        moving: The image to align.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file is not a transform of these images.
        InputTypeError: ``initial`` has another type.
    """
    if initial is None or isinstance(initial, Transform):
        return initial
    if isinstance(initial, str) and is_start(initial):
        return initial
    if isinstance(initial, (str, os.PathLike)):
        if not Path(initial).expanduser().exists():
            raise MissingFileError(
                f"No such transform: {initial}. Check the path, or give com, moments, identity{choices(str(initial))}."
            )
        return read_transform(initial, ndim=fixed.ndim, fixed=fixed.grid, moving=moving.grid)
    raise InputTypeError(
        "initial must be 'com', 'moments', 'identity', the name of a model, the path of a transform, or a Transform, "
        f"got {type(initial).__name__}."
    )


def found_start(name: StartName, fixed: Image, moving: Image) -> Transform:
    """Find an initial alignment.

    Args:
        name: ``"com"`` aligns the centers of mass, ``"moments"`` the principal axes too (the flip with the highest
            normalized mutual information, never a mirror image), ``"identity"`` aligns nothing. Any other name, such as
            ``"universal"``, is that of a model: its answer, deformation included.
        fixed: The reference; any intensity scale.
        moving: The image to align.

    Raises:
        InputError: An image is constant within its mask.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16, 16))
        >>> ball = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> found = found_start("com", learnreg.Image(ball, grid), learnreg.Image(ball.roll(2, -1), grid))
        >>> [round(x) for x in found(torch.zeros(1, 1, 3)).flatten().tolist()]
        [2, 0, 0]
    """
    if name == "identity":
        return Affine.identity(fixed.ndim, dtype=fixed.grid.dtype).to(fixed.data.device)
    if name not in WORDS or name == "universal":
        checkpoint = load_checkpoint(of_dimension(name, fixed.ndim))
        return OneShotMethod(checkpoint).to(fixed.data.device)(fixed, moving).transform
    stage = CenterOfMass() if name == "com" else Moments(Objective(MutualInformation(normalized=True)))
    return IterativeMethod({name: stage})(fixed, moving).transform
