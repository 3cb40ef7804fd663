"""Methods by name: the presets of ``conf/method``, or a YAML file of the user."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learnreg.configs.checks import check_targets
from learnreg.configs.compose import compose_config
from learnreg.configs.files import config_dir, method_names
from learnreg.configs.trust import check_data
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
        name: A preset (``learnreg methods`` lists them), or the path of a YAML file. The file is data: it cannot have
            interpolations, and only modules that :func:`learnreg.configs.trust.check_allowed` knows are built.
        trust: Packages of your own whose classes a file may use, such as ``["mylab"]``.

    Raises:
        InputError: There is no such preset, the file does not describe a method, or it needs a class that is not
            trusted.
        MissingFileError: There is no such file.

    Example:
        >>> list(load_method("affine").stages)
        ['center', 'rotation', 'affine']
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if name.endswith((".yaml", ".yml")):
        plain = _from_file(name)
        check_data(plain, name, trust)
    else:
        plain = OmegaConf.to_container(_from_preset(name), resolve=True)
        check_targets(plain)
    try:
        method = instantiate(plain, _convert_="all")
    except InstantiationException as error:
        raise InputError(f"{name}: {' '.join(str(error.__cause__ or error).split())}") from error
    if not isinstance(method, Method):
        raise InputError(f"{name} describes a {type(method).__name__}, not a Method.")
    return method


def _from_preset(name: str) -> Any:
    names = method_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}, or give a YAML file."
        raise InputError(f"Unknown method {name!r}; {hint}")
    return compose_config(config_dir(), f"method/{name}").method


def _from_file(name: str) -> Any:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise MissingFileError(f"No such method file: {file}. Check the path, or give the name of a preset.")
    try:
        config: Any = OmegaConf.load(file)
        if "defaults" in config:
            config = compose_config(file.parent, file.stem, [f"hydra.searchpath=[file://{config_dir()}]"])
        return OmegaConf.to_container(config, resolve=False)
    except (YAMLError, HydraException, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a valid method file: {' '.join(str(error).split())}") from error
