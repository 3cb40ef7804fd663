"""Checkpoints: read and write trained networks, without running code from a file."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from learnreg.configs.build import build, check_plain
from learnreg.configs.checks import check_targets
from learnreg.configs.models import RELEASED, choices, model_file, model_files
from learnreg.errors import InputError, MissingFileError
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network
from learnreg.objective import Objective
from learnreg.typing import PathLike
from learnreg.writing import write_atomically

FORMAT = 3
VOXELS = 2**31  # of the largest grid of a model
KEY = "learnreg"
PREFIX = "network."
SPACE = "learnreg.data.preprocessing.ModelSpace"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Trained network with the objective and the grid of its training.

    Args:
        network: The network, in evaluation mode.
        objective: Objective of the training, without supervision.
        space: Keyword arguments of :class:`learnreg.data.preprocessing.ModelSpace`.
        recipe: Configuration of all parts, as plain values.
        refinement: Stage or method that refines the transform of a pair, or ``None``.

    Example:
        >>> checkpoint = load_checkpoint("hippocampus")
        >>> checkpoint.network.ndim, list(checkpoint.space["shape"])
        (3, [48, 64, 48])
    """

    network: Network
    objective: Objective
    space: dict[str, Any]
    recipe: dict[str, Any]
    refinement: nn.Module | None = None


def recipe(
    network: Mapping[str, Any],
    objective: Mapping[str, Any],
    space: Mapping[str, Any],
    refinement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the configuration that a checkpoint stores besides the weights.

    Args:
        network: Configuration of the network, with ``_target_``.
        objective: Configuration of the objective, with ``_target_``.
        space: Keyword arguments of :class:`learnreg.data.preprocessing.ModelSpace`.
        refinement: Configuration of the refinement, with ``_target_``, or ``None``.
    """
    stored: dict[str, Any] = {"network": dict(network), "objective": dict(objective), "space": dict(space)}
    return {"format": FORMAT, **stored, "refinement": dict(refinement) if refinement else None}


def load_checkpoint(path: PathLike, *, trust: Sequence[str] = ()) -> Checkpoint:
    """Read a checkpoint of a training, or a released model.

    A file cannot run code: only tensors and plain values are read, and only public classes of learnreg and classes of
    ``trust`` are built, after their arguments and the shapes of the weights were checked.

    Args:
        path: ``best.ckpt`` or ``last.ckpt`` of a run, a file of :func:`release`, or the name of a model that comes with
            learnreg or is in ``LEARNREG_MODELS``, see :func:`learnreg.configs.models.model_files`.
        trust: Packages whose classes can be built too, such as ``["mylab"]`` for a network of your own.

    Returns:
        The network in evaluation mode, on the CPU, with its configuration.

    Raises:
        MissingFileError: There is no such file and no such model.
        UntrustedClassError: The file needs a class of a package that is not in ``trust``.
        InputError: The file is damaged, is not a checkpoint of learnreg, has another format, or its parts do not fit.

    Example:
        >>> type(load_checkpoint("hippocampus").network).__name__
        'Oriented'
    """
    file = find(path)
    stored, weights = _read(file)
    network = _network(stored["network"], weights, file, trust)
    objective = build(unsupervised(stored["objective"]), source=str(file), trust=trust)
    if not isinstance(objective, Objective):
        raise InputError(
            f"{file} needs a learnreg.objective.Objective, got {stored['objective'].get('_target_')}; train again."
        )
    refinement = stored.get("refinement")
    stage = build(refinement, source=str(file), trust=trust) if refinement else None
    return Checkpoint(network, objective, dict(stored["space"]), stored, stage)


def unsupervised(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an objective without supervision, which only a training uses."""
    return {key: value for key, value in objective.items() if key != "supervision"}


def _network(config: Mapping[str, Any], weights: Mapping[str, Tensor], file: Path, trust: Sequence[str]) -> Network:
    """Build the network with its weights; the shapes are compared before memory is allocated for them."""
    if not trust:  # the constructor of another package may need the values of its tensors
        with torch.device("meta"), _Values(), _at_most(4 * len(weights) + 64, file):
            outline = as_network(build(config, source=str(file)))
        _check_shapes(outline, config, weights, file)
    network = as_network(build(config, source=str(file), trust=trust))
    _check_shapes(network, config, weights, file)
    try:
        network.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return network.eval()


class _Values(TorchFunctionMode):
    """Keep ``torch.linspace`` off the meta device: MONAI's Swin transformer reads the values of its drop rates.

    Normal numbers are not drawn there: it loads torch's compiler, and there is nothing to draw.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        given = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **given, **(kwargs or {}))


@contextmanager
def _at_most(count: int, file: Path) -> Iterator[None]:
    """Stop the construction of a network of more parameters than the file has, such as of 10^6 blocks."""
    own, found = threading.get_ident(), 0

    def counted(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal found
        found += threading.get_ident() == own
        if found > count:
            raise InputError(f"{file} describes a network of more weights than it holds; copy it again.")

    handle = nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _check_shapes(network: Network, config: Mapping[str, Any], weights: Mapping[str, Tensor], file: Path) -> None:
    """Compare names, shapes and kinds of the weights of a network and of its file."""
    expected = network.state_dict()
    odd = sorted(expected.keys() ^ weights.keys())
    odd += [key for key in expected.keys() & weights.keys() if not _alike(expected[key], weights[key])]
    if odd:
        raise InputError(
            f"{file} does not fit its network, {config.get('_target_')}, in {odd[0]}: the file is damaged, or the "
            "class has changed since. Copy it again, train again or install the version that wrote it."
        )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def release(checkpoint: PathLike, output: PathLike, *, trust: Sequence[str] = ()) -> None:
    """Convert a checkpoint to one small file that :func:`load_checkpoint` reads, with weights in half precision.

    Args:
        checkpoint: ``best.ckpt`` or ``last.ckpt`` of a run.
        output: A new ``.safetensors`` file.
        trust: See :func:`load_checkpoint`.

    Raises:
        InputError: ``output`` has another suffix, or the checkpoint cannot be used.

    Example:
        >>> release("runs/oasis/2026-01-31_12-00-00/checkpoints/best.ckpt", "oasis.safetensors")  # doctest: +SKIP
        >>> load_checkpoint("oasis.safetensors").network  # doctest: +SKIP
    """
    from safetensors.torch import save

    target = Path(output)
    if target.suffix != RELEASED:
        raise InputError(f"A released model is a {RELEASED} file, got {target.name}; change the suffix.")
    load_checkpoint(checkpoint, trust=trust)  # raises if the checkpoint cannot be used
    stored, weights = _read(find(checkpoint))
    halves = {key: w.half() if w.is_floating_point() else w for key, w in weights.items()}
    for key, half in halves.items():
        if not half.isfinite().all():
            raise InputError(
                f"{checkpoint} has weights above 65504 in {key}, too large for half precision; use it as it is."
            )
    write_atomically(target, lambda part: Path(part).write_bytes(save(halves, {KEY: json.dumps(stored)})))


def of_dimension(path: PathLike, ndim: int) -> PathLike:
    """Return the name of the released model for images of a dimension: ``NAME-2d`` beside ``NAME``, if there is one.

    Args:
        path: A file, or the name of a model.
        ndim: 2 or 3.
    """
    flat = f"{path}-2d"
    return flat if ndim == 2 and not Path(path).expanduser().is_file() and flat in model_files() else path


def find(path: PathLike) -> Path:
    """Return the file of a checkpoint or of a released model.

    Args:
        path: A file, or the name of a model. A file comes before a model of the same name.

    Raises:
        MissingFileError: There is no such file and no such model.
        InputError: See :func:`learnreg.configs.models.model_file`.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    try:
        return model_file(str(path))
    except MissingFileError as error:
        raise MissingFileError(
            f"No such checkpoint: {file}. Give best.ckpt or last.ckpt from runs/<experiment>/<time>/checkpoints"
            f"{choices(str(path))}."
        ) from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the recipe and the weights of a file, and check both before anything is built from them.

    Raises:
        InputError: A part is missing, or of another type, or a weight is not finite.
    """
    stored, weights = _read_release(file) if file.suffix == RELEASED else _read_training(file)
    if stored.get("format") != FORMAT:
        raise InputError(
            f"{file} has checkpoint format {stored.get('format')}, this version of learnreg reads {FORMAT}; "
            "train again or install the version that wrote it."
        )
    for key in ("network", "objective", "space"):
        if not isinstance(stored.get(key), dict):
            raise InputError(f"{file} is damaged: it has no configuration of the {key}; copy it again.")
    if not isinstance(stored.get("refinement") or {}, dict):
        raise InputError(f"{file} is damaged: its refinement is not a configuration; copy it again.")
    try:
        check_plain(stored)
        check_targets({"space": {"_target_": SPACE, **stored["space"]}})
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    _check_space(stored["space"], file)
    for key, value in weights.items():
        _check_weight(key, value, file)
    return stored, weights


def _check_space(space: Mapping[str, Any], file: Path) -> None:
    """Check that the grid of a model has a size, and one that can be allocated."""
    spacing, shape = space.get("spacing", 1.0), space.get("shape") or [1]
    sides = spacing if isinstance(spacing, (list, tuple)) else [spacing]
    if min(sides) <= 0 or min(shape) < 1 or math.prod(shape) > VOXELS:
        raise InputError(
            f"{file} has a grid of {list(shape)} voxels of {spacing} mm; the file is damaged, copy it again."
        )


def _check_weight(key: str, value: Any, file: Path) -> None:
    if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        raise InputError(f"{file} is damaged: {key} is not a dense tensor; copy it again.")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{file} is damaged: {key} has the shape {tuple(value.shape)} but fewer values; copy it again."
        )
    if not value.isfinite().all():
        raise InputError(f"{file} has NaN or infinite weights in {key}: the training diverged; use another checkpoint.")


def _read_training(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{file} is not a checkpoint that can be read safely; give one written by train.py."
        ) from error
    stored = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(stored, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{file} is not a checkpoint of learnreg; give one written by train.py.")
    weights = content["state_dict"].items()
    return stored, {str(key).removeprefix(PREFIX): value for key, value in weights if str(key).startswith(PREFIX)}


def _read_release(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            stored = dict(json.loads((content.metadata() or {})[KEY]))
            return stored, {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is not a model of learnreg; give one written by `learnreg export`.") from error
