"""What a file may build: configurations from checkpoints and method files are data, and never run code."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from learnreg.configs.checks import check_targets, located_targets
from learnreg.errors import InputError

MONAI = (
    "AttentionUnet",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DynUNet",
    "GlobalNet",
    "HighResNet",
    "LocalNet",
    "RegUNet",
    "SegResNet",
    "SegResNetVAE",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
    "VoxelMorph",
    "VoxelMorphUNet",
)
TORCH = (
    *("BatchNorm2d", "BatchNorm3d", "GroupNorm", "Identity", "InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "Linear"),
    *("Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d"),
    *("ELU", "GELU", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "SiLU", "Softplus", "Tanh"),
)
OPTIMIZERS = ("Adam", "AdamW", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
ALLOWED = {
    **{f"monai.networks.nets.{name}": nn.Module for name in MONAI},
    **{f"torch.nn.{name}": nn.Module for name in TORCH},
    **{f"torch.optim.{name}": Optimizer for name in OPTIMIZERS},
}
SPECIAL = ("_target_", "_partial_")
LARGEST = 10**6  # no channel, size or number of iterations comes near


def check_data(config: Any, file: str, trust: Sequence[str] = ()) -> None:
    """Check that a configuration from a file is data, and that what it builds is allowed and takes its arguments.

    Args:
        config: Plain containers, not resolved.
        file: For error messages.
        trust: Packages whose classes may be built as well, by name.

    Raises:
        InputError: The configuration has an interpolation, an unusual value or key of Hydra, a class that is not
            allowed, or an argument that its class does not take.
    """
    _check_plain(config, file, "")
    for package in trust:
        _import(package)
    try:
        for where, target in located_targets(config):
            check_allowed(target, where, trust)
        check_targets(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def check_allowed(target: str, where: str, trust: Sequence[str] = ()) -> None:
    """Check that a file may build a class.

    Modules and optimizers of learnreg are allowed, some of torch and MONAI, and all of the packages in ``trust``.

    Raises:
        InputError: It may not.
    """
    if any(target.startswith(f"{package}.") for package in trust):
        return
    if target in ALLOWED:
        return
    if target.startswith("learnreg."):
        module, _, name = target.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{where}: this version of learnreg has no {target}.") from error
        own = inspect.isclass(found) and found.__module__.startswith("learnreg.")
        if own and issubclass(found, (nn.Module, Optimizer)):
            return
        raise InputError(f"{where}: {target} is not a module or optimizer; a file can build nothing else.")
    package = target.partition(".")[0]
    raise InputError(
        f"{where}: a file may not build {target}. If you trust the package, say so: --trust {package} on the command "
        f"line, trust=['{package}'] in Python, 'trust=[{package}]' for train.py."
    )


def _import(package: str) -> None:
    """Import a trusted package, also from the current folder."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"The trusted package {package} cannot be imported: {error}. Install it here.") from error


def _check_plain(node: Any, file: str, where: str) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            _check_key(key, file, where)
            _check_plain(value, file, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            _check_plain(value, file, f"{where}[{index}]")
    else:
        _check_value(node, file, where)


def _check_key(key: Any, file: str, where: str) -> None:
    if not isinstance(key, str):
        raise InputError(f"{file}: {where or 'the configuration'} has the key {key!r}; keys are names.")
    if "${" in key:
        raise InputError(f"{file}: the key {key!r} has an interpolation; write its value out.")
    if key.startswith("_") and key not in SPECIAL:
        raise InputError(f"{file}: the key {key!r} in {where or 'the configuration'} is not allowed in a file.")


def _check_value(value: Any, file: str, where: str) -> None:
    if isinstance(value, str) and "${" in value:
        raise InputError(f"{file}: {where} is {value!r}, an interpolation; write its value out.")
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
        raise InputError(f"{file}: {where} is {value}; a number in a file is at most {LARGEST}.")
    if value is not None and not isinstance(value, (str, int, float)):
        raise InputError(
            f"{file}: {where} is a {type(value).__name__}; a file holds text, numbers, lists and mappings."
        )
