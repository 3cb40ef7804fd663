"""Compose a configuration, also inside of another Hydra application, and the presets without Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

OVERRIDE = "override "


def compose_config(folder: Path, name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose a configuration by Hydra's rules.

    Args:
        folder: Where the primary configuration lies.
        name: Of the primary configuration, without ``.yaml``.
        overrides: As on Hydra's command line.

    Returns:
        The configuration, a ``DictConfig`` with its interpolations.

    Raises:
        HydraException: The configuration or an override does not fit.
        OmegaConfBaseException: An override does not fit the schema.
    """
    from hydra import compose, initialize_config_dir

    with _own_hydra(), initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the state of a Hydra application that is running; Hydra keeps it in two global objects."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    kept = GlobalHydra.instance().hydra, VersionBase.instance().version_base
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:  # composing may have replaced both objects
        GlobalHydra.instance().hydra, VersionBase.instance().version_base = kept


def compose_preset(folder: Path, name: str) -> dict[str, Any]:
    """Compose one of the configs that come with learnreg, as Hydra does, in a tenth of its time.

    It follows what these files use of Hydra's rules: a list ``defaults`` of ``group@package: option``, ``override`` and
    ``_self_``. Files of a user are composed by :func:`compose_config`.

    Args:
        folder: Of the configs, see :func:`learnreg.configs.files.config_dir`.
        name: Place of the file in the folder, without ``.yaml``.

    Returns:
        The configuration as plain containers; interpolations stay as they are written.

    Example:
        >>> from learnreg.configs.files import config_dir
        >>> compose_preset(config_dir(), "method/fast")["stages"]["affine"]["iterations"]
        [20]
    """
    config: dict[str, Any] = {}
    _compose(folder, name, (), {}, config)
    return config


def _compose(
    folder: Path, name: str, package: tuple[str, ...], chosen: dict[tuple[str, tuple[str, ...]], str], into: Any
) -> None:
    """Merge a file and its defaults into a configuration; ``chosen`` are the overrides of the files that name it."""
    content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = content.pop("defaults", ["_self_"])
    places = [_place(entry, name, package) for entry in entries]
    own = {place[:2]: place[2] for place, entry in zip(places, entries, strict=True) if _is_override(entry)}
    chosen = own | chosen
    for entry, (group, inner, option) in zip(entries, places, strict=True):
        if entry == "_self_":
            _merge(into, package, content)
        elif not _is_override(entry):
            _compose(folder, f"{group}/{chosen.get((group, inner), option)}", inner, chosen, into)


def _is_override(entry: Any) -> bool:
    return isinstance(entry, dict) and next(iter(entry)).startswith(OVERRIDE)


def _place(entry: Any, name: str, package: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    """Return group, package and option of an entry of ``defaults``: ``group@package: option`` or ``file@package``."""
    key, option = next(iter(entry.items())) if isinstance(entry, dict) else (entry, "")
    group, _, inner = key.removeprefix(OVERRIDE).partition("@")
    if not option:
        group, _, option = group.rpartition("/")
    group = group[1:] if group.startswith("/") else f"{name.rpartition('/')[0]}/{group}".rstrip("/")
    return group, package if inner in ("", "_here_") else (*package, *inner.split(".")), option


def _merge(into: dict[str, Any], package: tuple[str, ...], content: dict[str, Any]) -> None:
    """Merge mappings key by key; other values replace what was there."""
    for key in package:
        if not isinstance(into.get(key), dict):
            into[key] = {}
        into = into[key]
    for key, value in content.items():
        if isinstance(value, dict):
            _merge(into, (key,), value)
        else:
            into[key] = value
