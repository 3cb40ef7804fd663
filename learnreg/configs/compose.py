"""Compose a configuration, also inside of another Hydra application."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
