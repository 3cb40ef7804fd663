"""Checkpoints: read and write trained networks, without running code from a file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.configs.files import RELEASED, model_files
from learnreg.configs.trust import check_data
from learnreg.errors import InputError, MissingFileError
from learnreg.io import write_atomically
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network
from learnreg.objective import Objective
from learnreg.typing import PathLike

FORMAT = 3
KEY = "learnreg"
PREFIX = "network."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Trained network with the objective and the grid of its training.

    Args:
        network: The network, in evaluation mode.
        objective: Objective of the training, without supervision.
        space: Keyword arguments of :class:`learnreg.data.preprocessing.ModelSpace`.
        recipe: Configuration of all parts, as plain values.
        refinement: Stage that refines the transform of a pair, or ``None``.

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
        refinement: Configuration of the refinement stage, with ``_target_``, or ``None``.
    """
    stored: dict[str, Any] = {"network": dict(network), "objective": dict(objective), "space": dict(space)}
    return {"format": FORMAT, **stored, "refinement": dict(refinement) if refinement else None}


def load_checkpoint(path: PathLike, *, trust: Sequence[str] = ()) -> Checkpoint:
    """Read a checkpoint of a training, or a released model.

    A file cannot run code: only tensors and plain values are read, only modules that
    :func:`learnreg.configs.trust.check_allowed` knows are built, and they must have the sizes of the stored weights.

    Args:
        path: ``best.ckpt`` or ``last.ckpt`` of a run, a file of :func:`release`, or the name of a model that comes with
            learnreg, see :func:`learnreg.configs.files.model_files`.
        trust: Packages of your own whose classes may be built, such as ``["mylab"]``.

    Returns:
        The network in evaluation mode, on the CPU, with its configuration.

    Raises:
        MissingFileError: There is no such file and no such model.
        InputError: The file is damaged, is not a checkpoint of learnreg, has another format or weights that are not
            finite, or needs a class that is not trusted.

    Example:
        >>> type(load_checkpoint("hippocampus").network).__name__
        'Pyramid'
    """
    file = find(path)
    stored, weights = _read_release(file) if file.suffix == RELEASED else _read_training(file)
    if stored.get("format") != FORMAT:
        raise InputError(
            f"{file} has checkpoint format {stored.get('format')}, this version of learnreg reads {FORMAT}; "
            "train again or install the version that wrote it."
        )
    for key in ("network", "objective", "space"):
        if not isinstance(stored.get(key), dict):
            raise InputError(f"{file} is damaged: it has no configuration of the {key}; copy it again.")
    _check_weights(weights, file)
    check_data({"_target_": "learnreg.data.preprocessing.ModelSpace", **stored["space"]}, str(file), ("learnreg",))
    _check_sizes(stored["network"], weights, file, trust)
    network = as_network(build(stored["network"], str(file), trust))
    network.load_state_dict(weights)
    objective = build(stored["objective"], str(file), trust)
    if not isinstance(objective, Objective):
        raise InputError(
            f"{file} needs a learnreg.objective.Objective, got {stored['objective'].get('_target_')}; train again."
        )
    refinement = build(stored["refinement"], str(file), trust) if stored.get("refinement") else None
    network.eval()
    return Checkpoint(network, objective.unsupervised(), dict(stored["space"]), stored, refinement)


def _check_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{file} is damaged: {key} is a {type(value).__name__}, not a tensor; copy it again.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"{file}: the weights {key} are not finite; the training diverged. Use an earlier one.")


def _check_sizes(config: Mapping[str, Any], weights: Mapping[str, Tensor], file: Path, trust: Sequence[str]) -> None:
    """Compare the sizes of a network with its weights, before memory is taken for it."""
    changed = InputError(
        f"{file} does not fit its network, {config.get('_target_')}: the class or the file has changed since. Train "
        "again or install the version that wrote it."
    )
    try:
        with torch.device("meta"):
            network = as_network(build(config, str(file), trust))
    except (RuntimeError, NotImplementedError) as error:  # a class that computes with values when it is built
        if "meta" not in str(error):
            raise changed from error
        return
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise changed


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
    from safetensors.torch import save_file

    target = Path(output)
    if target.suffix != RELEASED:
        raise InputError(f"A released model is a {RELEASED} file, got {target.name}; change the suffix.")
    load_checkpoint(checkpoint, trust=trust)  # raises if the checkpoint cannot be used
    stored, weights = _read_training(find(checkpoint))
    halves = {key: w.half() if w.is_floating_point() else w for key, w in weights.items()}
    write_atomically(target, lambda part: save_file(halves, part, {KEY: json.dumps(stored)}))


def find(path: PathLike) -> Path:
    """Return the file of a checkpoint or of a released model.

    Args:
        path: A file, or the name of a model that comes with learnreg. A file comes before a model of the same name.

    Raises:
        MissingFileError: There is no such file and no such model.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    models = model_files()
    if str(path) in models:
        return models[str(path)]
    known = f" or one of {', '.join(models)}" if models else ""
    raise MissingFileError(
        f"No such checkpoint: {file}. Give best.ckpt or last.ckpt from runs/<experiment>/<time>/checkpoints{known}."
    )


def _read_training(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{file} is not a checkpoint that can be read safely; give one written by train.py."
        ) from error
    stored = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(stored, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{file} is not a checkpoint of learnreg; give one written by train.py.")
    weights = content["state_dict"].items()
    return stored, {key.removeprefix(PREFIX): value for key, value in weights if key.startswith(PREFIX)}


def _read_release(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            stored = dict(json.loads((content.metadata() or {})[KEY]))
            return stored, {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file} is not a model of learnreg; give one written by `learnreg export`.") from error


def build(config: Mapping[str, Any], file: str, trust: Sequence[str] = ()) -> nn.Module:
    """Build the module of a configuration that comes from a file.

    Args:
        config: Configuration with ``_target_``, nested.
        file: For error messages.
        trust: See :func:`load_checkpoint`.

    Raises:
        InputError: The configuration is not data, a target may not be built or does not exist, or the result is not a
            ``torch.nn.Module``.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_data(config, file, trust)
    try:
        module = instantiate(config, _convert_="all")
    except InstantiationException as error:
        known = error.__cause__
        if isinstance(known, (RuntimeError, NotImplementedError)) and "meta" in str(known):
            raise known from error
        reason = " ".join(str(known or error).split())
        raise InputError(f"{file}: {config.get('_target_')} cannot be built: {reason}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{file} needs a torch.nn.Module, got a {type(module).__name__}.")
    return module
