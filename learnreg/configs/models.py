"""Find trained models by name: those that come with learnreg, and those of ``LEARNREG_MODELS``."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

from learnreg.configs import files
from learnreg.errors import InputError, MissingFileError

RELEASED = ".safetensors"
VARIABLE = "LEARNREG_MODELS"
SUMS = "SHA256SUMS"
SECONDS = 30  # until a server that does not answer is given up
ABSENT = (403, 404, 410)  # buckets that cannot be listed answer 403
_NAME = re.compile(r"[\w-]+(\.\d[\w-]*)*")  # such as universal-1.1; best.ckpt and ../a are files


def model_files() -> dict[str, Path]:
    """Return the files of the trained models on this machine by name, without a download.

    A model that comes with learnreg lies beside the package in a checkout and inside of it in a wheel, and has a card
    ``NAME.md`` beside it. The others are those of the folder ``LEARNREG_MODELS``, or were downloaded from it before. A
    name that comes with learnreg always is that model.
    """
    ours = package_files()
    return ours | {name: file for name, file in own_files().items() if name not in ours}


def package_files() -> dict[str, Path]:
    """Return the files of the models that come with learnreg, by name."""
    return _of(files.PACKAGE / "models") | _of(files.PACKAGE.parent / "models")


def own_files() -> dict[str, Path]:
    """Return the files of ``LEARNREG_MODELS`` by name: in the folder, or downloaded before."""
    url = models_url()
    if url is not None:
        return _of(cache(url))
    return _of(Path(given()).expanduser()) if given() else {}


def _of(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob(f"*{RELEASED}"), key=lambda file: file.stem)}


def given() -> str:
    """Return ``LEARNREG_MODELS``, or an empty string."""
    return os.environ.get(VARIABLE, "").strip()


def models_url() -> str | None:
    """Return ``LEARNREG_MODELS`` if it is a URL and not a folder."""
    return given().rstrip("/") if re.match(r"(https?|file)://", given()) else None


def cache(url: str) -> Path:
    """Return the folder of what was downloaded from a URL: in torch's cache, which ``TORCH_HOME`` moves."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "learnreg" / hashlib.sha256(url.encode()).hexdigest()[:16]


def model_file(name: str) -> Path:
    """Return the file of a model; one that only the URL of ``LEARNREG_MODELS`` has is downloaded and kept.

    Args:
        name: Of a model, without a suffix.

    Raises:
        MissingFileError: There is no model of this name.
        InputError: The URL cannot be read, or its file does not have the sha256 that is given beside it.
    """
    known, url = model_files(), models_url()
    if name in known:
        return known[name]
    digest = _digest(url, name) if url is not None and _NAME.fullmatch(name) else None
    if url is None or digest is None:
        raise MissingFileError(f"No such model: {name}. Give the file of one{choices(name)}.")
    return _downloaded(url, name, digest)


def choices(name: str) -> str:
    """Return the end of a sentence on a model that is not there: the names, and what ``LEARNREG_MODELS`` lacks."""
    names, url = ", ".join(model_files()), models_url()
    text = f" or one of {names}" if names else ""
    if url is not None and _NAME.fullmatch(name):
        return f"{text}; {url} has no {name}{RELEASED} with a sha256 in {name}.sha256 or {SUMS}"
    if given() and url is None and not Path(given()).expanduser().is_dir():
        return f"{text}; {VARIABLE}={given()} is not a folder"
    return text


def _downloaded(url: str, name: str, digest: str) -> Path:
    """Download a model to the cache; torch writes it beside its place and renames it once its sha256 is right."""
    import torch.hub

    target = cache(url) / f"{name}{RELEASED}"
    source = f"{url}/{quote(target.name)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source, str(target), hash_prefix=digest, progress=sys.stderr.isatty())
    except RuntimeError as error:
        raise InputError(
            f"{source} does not have the sha256 that is given beside it, {digest}, so it was not kept; try again, or "
            "tell those who offer it."
        ) from error
    except (OSError, HTTPException) as error:
        raise InputError(f"{source} cannot be downloaded to {target.parent}: {error}.") from error
    return target


def _digest(url: str, name: str) -> str | None:
    """Return the sha256 of a model from ``NAME.sha256`` or ``SHA256SUMS``, as ``sha256sum`` writes them."""
    for sums in (f"{name}.sha256", SUMS):
        for line in _text(f"{url}/{quote(sums)}").splitlines():
            digest, _, file = line.strip().partition(" ")
            names = PurePosixPath(file.lstrip(" *")).name == name + RELEASED or (not file and sums != SUMS)
            if names and re.fullmatch("[0-9a-fA-F]{64}", digest):
                return digest.lower()
    return None


def _text(url: str) -> str:
    """Return a small text file; an empty text if there is none."""
    try:
        with urlopen(url, timeout=SECONDS) as answer:
            return str(answer.read(2**20), "utf-8", "replace")
    except (OSError, HTTPException, ValueError) as error:
        absent = isinstance(error, HTTPError) and error.code in ABSENT
        if absent or isinstance(getattr(error, "reason", None), FileNotFoundError):
            return ""
        raise InputError(f"{url} cannot be read: {error}; check {VARIABLE} and the connection.") from error
