"""Locate the Hydra configs and the released models."""

from __future__ import annotations

from pathlib import Path

from learnreg.errors import MissingFileError

RELEASED = ".safetensors"
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


def model_files() -> dict[str, Path]:
    """Return the files of the trained models that come with learnreg, by name; each has a card ``NAME.md`` beside it.

    They lie beside the package in a checkout, inside of it in a wheel.
    """
    folders = (PACKAGE / "models", PACKAGE.parent / "models")
    return {file.stem: file for folder in folders for file in sorted(folder.glob(f"*{RELEASED}"))}
