"""Methods by name: the YAML files of ``conf/method``, or one of the user's own."""

from __future__ import annotations

import difflib
from pathlib import Path

from learnreg.configs.checks import check_targets
from learnreg.configs.files import config_dir, method_names
from learnreg.errors import InputError, MissingFileError
from learnreg.methods.base import Method


def load_method(name: str) -> Method:
    """A classical method.

    Args:
        name: A preset, see ``learnreg methods``, or the path of a YAML file of the same form.

    Raises:
        ValueError: There is no such preset, or the file does not describe a method.
        FileNotFoundError: There is no such file.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder = config_dir()
    if name.endswith((".yaml", ".yml")):
        file = Path(name).expanduser().resolve()
        if not file.is_file():
            raise MissingFileError(f"No such method file: {file}. Copy one from {folder / 'method'}.")
        config = OmegaConf.load(file)
        if "defaults" in config:
            raise InputError(
                f"{file} has a defaults list; write its objectives out, or put it in conf/method of a checkout."
            )
    else:
        if name not in method_names():
            close = difflib.get_close_matches(name, method_names(), n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"choose from {', '.join(method_names())}, or give a YAML file."
            )
            raise InputError(f"Unknown method {name!r}; {hint}")
        if GlobalHydra.instance().is_initialized():
            raise RuntimeError("load_method composes its own configuration; call it outside of hydra.main.")
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(f"method/{name}").method
    plain = OmegaConf.to_container(config, resolve=True)
    check_targets(plain)
    method = instantiate(plain, _convert_="all")
    if not isinstance(method, Method):
        raise InputError(f"{name} describes a {type(method).__name__}, not a Method.")
    return method
