"""Methods by name: the presets of ``conf/method``, or a YAML file of the user."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learnreg.configs.build import build, check_plain
from learnreg.configs.checks import check_yaml
from learnreg.configs.compose import compose_config, compose_preset
from learnreg.configs.files import config_dir, method_names
from learnreg.errors import InputError, MissingFileError
from learnreg.methods.base import Method


def load_method(name: str, *, trust: Sequence[str] = ()) -> Method:
    """Load a classical method.

    A YAML file of your own can be written out in full, or start from a preset and list its differences::

        # mine.yaml: `brain` with more iterations
        defaults:
          - /method/brain@_here_
          - _self_
        stages:
          deformation: {iterations: [60, 80, 80, 40]}

    Args:
        name: A preset (``learnreg methods`` lists them), or the path of a YAML file.
        trust: Packages whose classes can be built besides those of learnreg, such as ``["mylab"]``.

    Raises:
        UntrustedClassError: The file needs a class of a package that is not in ``trust``.
        InputError: There is no such preset, or the file does not describe a method.
        MissingFileError: There is no such file.

    Example:
        >>> list(load_method("affine").stages)
        ['center', 'rotation', 'affine']
    """
    plain = _from_file(name) if name.endswith((".yaml", ".yml")) else _from_preset(name)
    method = build(plain, source=name, trust=trust)
    if not isinstance(method, Method):
        raise InputError(f"{name} describes a {type(method).__name__}, not a Method; give the file of a method.")
    return method


def _from_preset(name: str) -> Any:
    names = method_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}, or give a YAML file."
        raise InputError(f"Unknown method {name!r}; {hint}")
    return compose_preset(config_dir(), f"method/{name}")


def _from_file(name: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise MissingFileError(f"No such method file: {file}. Check the path, or give the name of a preset.")
    try:
        _check_text(file)
        config = _plain(OmegaConf.load(file))
        _check_file(config, file)
        return _composed(file) if "defaults" in config else config
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise _invalid(file, error) from error


def _composed(file: Path) -> Any:
    from hydra.errors import HydraException

    try:
        return _plain(compose_config(file.parent, file.stem, [f"hydra.searchpath=[file://{config_dir()}]"]))
    except HydraException as error:
        raise _invalid(file, error) from error


def _invalid(file: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"{file} is not a valid method file; correct it: {reason}")


def _plain(config: Any) -> Any:
    """Convert a configuration to plain containers; interpolations stay as they are written, and are refused."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=False)


def _check_text(file: Path) -> None:
    try:
        check_yaml(file.read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _check_file(config: Any, file: Path) -> None:
    """Check a file before Hydra composes it with the configs that its ``defaults`` name."""
    if not isinstance(config, dict):
        raise InputError(f"{file} is not a valid method file: it holds a list; start with _target_ or defaults.")
    if "hydra" in config or "hydra" in str(config.get("defaults")):
        raise InputError(f"{file} configures hydra, which a method file cannot do; leave `hydra` out.")
    try:
        check_plain(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
