"""Build modules from the configuration of a model or method file: such a file is data and cannot run code."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from learnreg.configs.checks import check_built, check_targets, join
from learnreg.errors import InputError, InputTypeError, UntrustedClassError

TARGET, PARTIAL = "_target_", "_partial_"
PACKAGES = (
    "learnreg.networks",
    "learnreg.similarity",
    "learnreg.regularization",
    "learnreg.optimization",
    "learnreg.methods",
    "learnreg.terms",
    "learnreg.objective",
    "learnreg.supervision",
)
FOREIGN = frozenset(
    f"monai.networks.nets.{name}"
    for name in ("AttentionUnet", "BasicUNet", "DynUNet", "RegUNet", "SegResNet", "SwinUNETR", "UNet", "VoxelMorphUNet")
)
LARGEST = 2**20
DEEPEST = 32


def build(config: Mapping[str, Any], *, source: str, trust: Sequence[str] = ()) -> nn.Module:
    """Build the module of a configuration that was read from a file.

    Only public classes of learnreg, a few networks of MONAI and classes of ``trust`` are built. Everything is checked
    before anything is built: the values are plain, no string is an interpolation, and each class takes the arguments.

    Args:
        config: Plain containers and values, with ``_target_``.
        source: The file, for error messages.
        trust: Packages whose classes can be built too, such as ``["mylab"]``.

    Raises:
        UntrustedClassError: A class is neither on the list nor in a package of ``trust``.
        InputError: The configuration cannot be built.
    """
    check_trust(trust)
    try:
        check_plain(config)
        _check_classes(config, trust, "")
        check_targets(config)
        module = _made(config, trust, "")
    except UntrustedClassError as error:
        raise UntrustedClassError(f"{source} {error.problem}", error.package) from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{source} describes no module; expected a mapping with {TARGET}.")
    return module


def check_trust(trust: Sequence[str]) -> None:
    """Check that trusted packages are given by name.

    Raises:
        InputError: A name is not that of a package.
        InputTypeError: ``trust`` is not a list.
    """
    if isinstance(trust, str) or not isinstance(trust, Sequence):
        raise InputTypeError(f'trust must be a list of packages, such as ["mylab"], got {trust!r}.')
    for package in trust:
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise InputError(f"A trusted package is a name that Python can import, such as mylab, got {package!r}.")


def check_plain(node: Any, where: str = "", depth: int = 0) -> None:
    """Check that a configuration holds plain values of a reasonable size, and no interpolation.

    Args:
        node: The configuration.
        where: Its place in the file, for error messages.
        depth: How deep it is nested.

    Raises:
        InputError: A value is not plain, not finite, larger than any size, or an interpolation.
    """
    if depth > DEEPEST:
        raise InputError(f"The configuration is nested more than {DEEPEST} levels deep.")
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(key, str):
                raise InputError(f"{where or 'The configuration'} has the key {key!r}, which must be a name.")
            _check_text(key, join(where, key))
            if key.startswith("_") and key not in (TARGET, PARTIAL):
                raise InputError(f"{join(where, key)} is not allowed in a file; leave it out.")
            check_plain(value, join(where, key), depth + 1)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            check_plain(value, f"{where}[{index}]", depth + 1)
    else:
        _check_value(node, where)


def _check_value(node: Any, where: str) -> None:
    if isinstance(node, str):
        _check_text(node, where)
    elif isinstance(node, float):
        if not math.isfinite(node):
            raise InputError(f"{where} must be a finite number, got {node}.")
    elif isinstance(node, int):
        if abs(node) > LARGEST and where.rpartition(".")[2] != "seed":
            raise InputError(f"{where} must be at most {LARGEST}, got {node}.")
    elif node is not None:
        raise InputError(f"{where} must be a number, text, list or mapping, got a {type(node).__name__}.")


def _check_text(text: str, where: str) -> None:
    if "${" in text:
        raise InputError(f"{where} has an interpolation, ${{...}}, which a file cannot have; write the value.")


def _check_classes(node: Any, trust: Sequence[str], where: str) -> None:
    """Find every class before anything is built."""
    if isinstance(node, Mapping):
        if TARGET in node:
            _class(node[TARGET], trust, where)
        if PARTIAL in node and (TARGET not in node or not isinstance(node[PARTIAL], bool)):
            raise InputError(f"{join(where, PARTIAL)} must be true or false beside a {TARGET}, got {node[PARTIAL]!r}.")
        for key, value in node.items():
            _check_classes(value, trust, join(where, key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            _check_classes(value, trust, f"{where}[{index}]")


def _class(target: Any, trust: Sequence[str], where: str) -> type:
    """Return the class of a name, if it can be built.

    Raises:
        UntrustedClassError: The name is neither on the list nor in a trusted package.
        InputError: There is no such class, or it is not a module.
    """
    if not isinstance(target, str):
        raise InputError(f"{join(where, TARGET)} must be the name of a class, got {target!r}.")
    found = _public_class(target)
    if found is None:
        module, _, name = target.rpartition(".")
        if target not in FOREIGN and not any(module == p or module.startswith(f"{p}.") for p in trust):
            if module == "learnreg" or module.startswith("learnreg."):
                raise InputError(
                    f"{join(where, TARGET)} is {target!r}, which is not a public class that can be built; check "
                    "its name."
                )
            raise UntrustedClassError(
                f"needs {target}, which is not part of learnreg", target.partition(".")[0] or target
            )
        if str(Path.cwd()) not in sys.path:  # a console script does not look into the current folder by itself
            sys.path.append(str(Path.cwd()))
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing a package can raise anything
            raise InputError(f"{join(where, TARGET)} is {target!r}, which cannot be imported: {error}.") from error
    if not (inspect.isclass(found) and issubclass(found, (nn.Module, Optimizer))):
        raise InputError(f"{join(where, TARGET)} is {target!r}, which is not a torch.nn.Module.")
    return found


def _public_class(target: str) -> Any:
    """Return a public class by its public name or by its name in the module that defines it, or ``None``."""
    module, _, name = target.rpartition(".")
    for package in PACKAGES:
        if module == package or module.startswith(f"{package}."):
            found = getattr(importlib.import_module(package), name, None)
            if inspect.isclass(found) and f"{found.__module__}.".startswith(f"{package}."):
                return found if module in (package, found.__module__) else None
    return None


def _made(node: Any, trust: Sequence[str], where: str) -> Any:
    if isinstance(node, (list, tuple)):
        return [_made(value, trust, f"{where}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {key: _made(value, trust, join(where, key)) for key, value in node.items() if key not in (TARGET, PARTIAL)}
    if TARGET not in node:
        return values
    made: Callable[..., Any] = _class(node[TARGET], trust, where)
    check_built(where, made, values)
    if node.get(PARTIAL):
        return partial(made, **values)
    try:
        return made(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error
    except Exception as error:  # a class can raise anything for values that its annotations allow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where or 'The configuration'}: {node[TARGET]} cannot be built: {reason}.") from error
