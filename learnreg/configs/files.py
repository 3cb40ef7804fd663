"""Locate the Hydra configs."""

from __future__ import annotations

from pathlib import Path

from learnreg.errors import MissingFileError

PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """Return the folder of ``train.yaml``: beside the package in a checkout, inside of it in a wheel.

    Raises:
        MissingFileError: There is no such folder; the installation is broken.
    """
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise MissingFileError(f"The configs of {PACKAGE} are missing; install learnreg again.")


def method_names() -> list[str]:
    """Return the names of the presets in ``conf/method``."""
    return sorted(file.stem for file in (config_dir() / "method").glob("*.yaml"))
