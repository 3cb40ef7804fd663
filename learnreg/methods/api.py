"""``register``: align two images in one call."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

import SimpleITK as sitk
from tqdm.auto import tqdm

from learnreg.errors import InputError, InputTypeError
from learnreg.image import Image
from learnreg.io import image_from_sitk, read_image
from learnreg.memory import peak_memory
from learnreg.methods.base import Method, Registration, check_pair, guided_by_landmarks
from learnreg.methods.one_shot import ByDimension, OneShotMethod
from learnreg.methods.presets import load_method
from learnreg.methods.start import Initial, StartName, found_start, start_of
from learnreg.networks.checkpoint import load_checkpoint, of_dimension
from learnreg.transforms import Affine, Transform
from learnreg.transforms.in_plane import Plane, flattened, is_slice, lifted
from learnreg.typing import PathLike, StepCallback

DEFAULT = "deformable"
ImageLike: TypeAlias = Image | sitk.Image | PathLike


def register(  # noqa: PLR0913 - the options of a registration
    fixed: ImageLike,
    moving: ImageLike,
    method: str | Method | None = None,
    *,
    checkpoint: PathLike | None = None,
    refine: int = 0,
    weight: float | None = None,
    initial: Initial | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
    progress: bool | None = None,
) -> Registration:
    """Align ``moving`` to ``fixed``.

    3-D images of a single slice are aligned in their plane.

    Args:
        fixed: The reference: a path, a SimpleITK image, or a :class:`learnreg.Image`.
        moving: The image to align: a path, a SimpleITK image, or a :class:`learnreg.Image`.
        method: Name of a preset of ``conf/method``, a YAML file, or a :class:`Method`, which is moved to ``device``;
            ``None`` is ``"deformable"``.
        checkpoint: Trained network to use in place of a method, see :func:`learnreg.load_checkpoint`.
        refine: Number of iterations that refine the transform of the ``checkpoint``.
        weight: Regularization weight for a checkpoint of a :class:`learnreg.networks.Conditioned` network; ``None`` is
            its default.
        initial: Transform to start from, fixed to moving, or the path of one; or ``"com"``, which aligns the centers of
            mass, ``"moments"``, the principal axes too (for unknown large rotations), ``"identity"``, or the name of a
            model, such as ``"universal"``: its answer. ``None`` lets the method choose.
        trust: Packages whose classes the file of a method or checkpoint can name besides those of learnreg, such as
            ``["mylab"]``.
        device: Device that computes; the result is returned on the CPU.
        progress: Show a progress bar; ``None`` shows one if the standard error stream is a terminal.

    Returns:
        The transform, the warped image and the losses, see :class:`Registration`.

    Raises:
        MissingFileError: A file does not exist.
        InputError: An image, the method or the checkpoint cannot be used; the message says why.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16, 16))
        >>> ball = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> result = register(learnreg.Image(ball, grid), learnreg.Image(ball.roll(2, -1), grid), "rigid")
        >>> [round(x) for x in result.transform(torch.zeros(1, 1, 3)).flatten().tolist()]
        [2, 0, 0]
    """
    chosen = choose_method(method, checkpoint=checkpoint, refine=refine, weight=weight, trust=trust, device=device)
    target, source = as_image(fixed, "fixed"), as_image(moving, "moving")
    for name, image in (("fixed", target), ("moving", source)):
        if image.mask is not None and not bool((image.mask != 0).flatten(1).any(1).all()):
            raise InputError(f"The mask of the {name} image is empty: every value is 0. Leave it out, or correct it.")
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=chosen.iterations, disable=not shown or not chosen.iterations, desc="register", unit="it") as bar:
        start = start_of(initial, target, source)
        start = start.to(device) if isinstance(start, Transform) else start
        pair = target.to(device), source.to(device)
        with peak_memory(device) as peak:
            result = _register(chosen, *pair, start, bar.update)
    return _on_the_cpu(result, peak.bytes, chosen)


def register_several(
    pairs: Sequence[tuple[Image, Image, Transform | StartName | None]], method: Method, *, device: str = "cpu"
) -> list[Registration]:
    """Align several pairs; a network takes those on grids of one shape together, other methods take one by one.

    Args:
        pairs: Fixed image, moving image and initial transform of each, or the name of a way to find one.
        method: The method, on ``device``.
        device: Device that computes; the results are returned on the CPU.

    Raises:
        InputError: A pair cannot be registered.
    """
    if not isinstance(method, OneShotMethod) or any(is_slice(image.grid) for pair in pairs for image in pair[:2]):
        return [register(*pair[:2], method, initial=pair[2], device=device, progress=False) for pair in pairs]
    moved = [(fixed.to(device), moving.to(device)) for fixed, moving, _ in pairs]
    with peak_memory(device) as peak:
        starts = [_found(start, *pair) for (*_, start), pair in zip(pairs, moved, strict=True)]
        results = method.several([(*pair, start) for pair, start in zip(moved, starts, strict=True)])
    return [_on_the_cpu(result, peak.bytes, method) for result in results]


def _on_the_cpu(result: Registration, peak_bytes: int | None, method: Method) -> Registration:
    began = None if result.initial is None else result.initial.to("cpu")
    fixed, moving = result.fixed.to("cpu"), result.moving.to("cpu")
    transform = result.transform.to("cpu")
    guided = result.guided or guided_by_landmarks(method, fixed, moving)
    return Registration(transform, fixed, moving, began, result.history, result.seconds, peak_bytes, guided)


def _started(
    method: Method, fixed: Image, moving: Image, initial: Transform | StartName | None, on_step: StepCallback
) -> Registration:
    """Run a method from a start that may have to be found first."""
    return method(fixed, moving, initial=_found(initial, fixed, moving), on_step=on_step)


def _found(initial: Transform | StartName | None, fixed: Image, moving: Image) -> Transform | None:
    """Return the initial transform of a pair, on the device of the images."""
    if isinstance(initial, str):
        check_pair(fixed, moving)
        return found_start(initial, fixed, moving)
    return None if initial is None else initial.to(fixed.data.device)


def _register(
    method: Method, fixed: Image, moving: Image, initial: Transform | StartName | None, on_step: StepCallback
) -> Registration:
    """Run a method; single slices are registered in their plane."""
    slices = is_slice(fixed.grid), is_slice(moving.grid)
    if not any(slices):
        return _started(method, fixed, moving, initial, on_step)
    if {fixed.ndim, moving.ndim} == {2, 3}:  # a 2-D image has no plane in space; compare both as 2-D images
        fixed, moving = (image if image.ndim == 2 else Plane.of(image.grid).flat(image) for image in (fixed, moving))
        return _started(method, fixed, moving, initial, on_step)
    if not all(slices):
        raise InputError(
            f"One image is a single slice and the other a volume ({fixed.grid.shape} and {moving.grid.shape} samples); "
            "give two slices or two volumes."
        )
    plane = Plane.of(fixed.grid)
    other = Plane.of(moving.grid, like=plane)
    if initial is not None and not isinstance(initial, str):
        if not isinstance(initial, Affine) or initial.ndim != 3:
            raise InputError("The initial transform of two single slices must be linear and 3-D.")
        initial = flattened(initial, plane, other)
    flat = _started(method, plane.flat(fixed), other.flat(moving), initial, on_step)
    began = None if flat.initial is None else lifted(flat.initial, plane, other)
    return Registration(lifted(flat.transform, plane, other), fixed, moving, began, flat.history, flat.seconds)


def choose_method(
    method: str | Method | None = None,
    *,
    checkpoint: PathLike | None = None,
    refine: int = 0,
    weight: float | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
) -> Method:
    """Return the method that :func:`register` uses for these arguments."""
    if checkpoint is not None and method is not None:
        raise InputError("Give a method or a checkpoint, not both: a checkpoint holds a network, which is the method.")
    if checkpoint is None:
        method = DEFAULT if method is None else method
        if refine:
            raise InputError(
                f"refine={refine} refines the transform of a network; give a checkpoint too, or use refine=0."
            )
        if weight is not None:
            raise InputError(
                f"weight={weight} is for the checkpoint of a conditioned network; give a checkpoint, or set the weight "
                "in the file of a method."
            )
        return (method if isinstance(method, Method) else load_method(method, trust=trust)).to(device)
    names = {of_dimension(checkpoint, ndim) for ndim in (2, 3)}
    models = [OneShotMethod(load_checkpoint(name, trust=trust), refine=refine, weight=weight) for name in names]
    return (models[0] if len(models) == 1 else ByDimension(models)).to(device)


def as_image(image: ImageLike, name: str = "image") -> Image:
    """Convert a path or a SimpleITK image to a :class:`learnreg.Image`.

    Args:
        image: A path, a SimpleITK image, or a :class:`learnreg.Image`.
        name: ``"fixed"`` or ``"moving"``, for error messages.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The image cannot be used.
        InputTypeError: ``image`` has another type.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, sitk.Image):
        return image_from_sitk(image, name=f"the {name} image")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    raise InputTypeError(
        f"The {name} image must be a path, a SimpleITK image or a learnreg Image, got {type(image).__name__}."
    )
