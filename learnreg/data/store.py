"""``ImageStore``: images that are ready for training, kept on disk for all processes and in memory up to a bound."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import get_worker_info

from learnreg.data.datasets import centered
from learnreg.data.files import content_of
from learnreg.data.formats import Subject
from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.typing import PathLike
from learnreg.writing import PART, write_atomically

ROLES = "data", "affine", "mask", "labels", "landmarks"
SUFFIX = ".safetensors"
ABANDONED = 3600.0  # seconds; a temporary file this old belongs to a process that was killed
GIGABYTE = 1e9
# An image that is stored depends on these files; a change of any of them makes all stored images stale.
SOURCES = (
    *("grid", "separable", "numerics", "interpolation", "image", "headers", "writing", "io", "landmarks", "sampling"),
    *("data.bids", "data.datasets", "data.files", "data.formats", "data.preprocessing", "data.store"),
)


class ImageStore:
    """Read, normalize and resample each subject once, centered at 0.

    All images lie on the same grid with their centers at 0, so two of them are a pair with aligned centers.

    With a folder, prepared images are shared by the workers of a data loader, by ranks and by later runs. Each is one
    safetensors file that is mapped into memory, so all processes use one copy of it. Its name is a hash of the bytes of
    the source files, of ``space`` and of the code that prepares images, so that nothing in the folder is stale.
    Intensities are stored as float32: an image is the same with a folder and without.

    Args:
        space: The model's grid; its ``shape`` is needed.
        folder: Where images are kept; it is made. ``None`` keeps them in memory only.
        size: GB that the folder may take; the images that were not used for longest are removed.
        memory: GB that images in memory may take without a folder, of all workers of a data loader together; the images
            that were not used for longest are dropped.

    Raises:
        InputError: ``space`` has no shape, a bound is negative, or the folder cannot be written.
    """

    def __init__(
        self, space: ModelSpace, folder: PathLike | None = None, *, size: float = 20.0, memory: float = 4.0
    ) -> None:
        if space.shape is None:
            raise InputError("Training needs one shape for all images; set data.space.shape, for example [64, 64, 64].")
        for name, value in (("cache_size", size), ("memory", memory)):
            if not value >= 0:
                raise InputError(f"data.{name} is a number of GB, at least 0, got {value}.")
        self.space = space
        self.folder = None if folder is None else Path(folder).expanduser().absolute()
        self.size, self.memory = float(size), float(memory)
        self._files: dict[Subject, Path] = {}
        self._kept: OrderedDict[Subject, dict[str, Tensor]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": OrderedDict()}  # a worker starts without the images of its parent

    def __call__(self, subject: Subject) -> Image:
        """Return the image of a subject on the model's grid.

        Raises:
            InputError: The image cannot be read or is constant, or the folder cannot be written; the message names it.
        """
        return _unpacked(self._packed(subject), subject)

    def _packed(self, subject: Subject) -> dict[str, Tensor]:
        if self.folder is not None:
            return self._stored(subject, self.folder)
        if subject in self._kept:
            self._kept.move_to_end(subject)
            return self._kept[subject]
        tensors = self._prepared(subject)
        self._keep(subject, tensors)
        return tensors

    def _prepared(self, subject: Subject) -> dict[str, Tensor]:
        image = normalized(self.space.seen(subject.read()), name=str(subject.image))
        return _packed(centered(self.space.place(image)))

    def _keep(self, subject: Subject, tensors: dict[str, Tensor]) -> None:
        worker = get_worker_info()
        bound = self.memory * GIGABYTE / (worker.num_workers if worker else 1)
        self._kept[subject] = tensors
        total = sum(map(_bytes, self._kept.values()))
        while self._kept and total > bound:
            _, dropped = self._kept.popitem(last=False)
            total -= _bytes(dropped)

    def _stored(self, subject: Subject, folder: Path) -> dict[str, Tensor]:
        if subject not in self._files:
            content = content_of(subject.files)
            key = hashlib.sha256(f"{content} {subject.time} {_recipe(self.space)}".encode()).hexdigest()[:32]
            self._files[subject] = folder / f"{key}{SUFFIX}"
        file = self._files[subject]
        found = _opened(file)
        if found is not None:
            return found
        tensors = self._prepared(subject)
        _write(file, save(tensors))
        self._make_room(folder)
        return tensors

    def _make_room(self, folder: Path) -> None:
        """Remove the images that were not used for longest, and what killed processes left."""
        stored, total, now = [], 0, time.time()
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # removed by another process
                status = entry.stat()
                if entry.name.startswith(PART):
                    if now - status.st_mtime > ABANDONED:
                        Path(entry.path).unlink(missing_ok=True)
                elif entry.name.endswith(SUFFIX):
                    stored.append((status.st_mtime, status.st_size, Path(entry.path)))
                    total += status.st_size
        own = set(self._files.values())
        for _, size, file in sorted(stored)[:-1]:  # the newest stays: it is needed now
            if total <= self.size * GIGABYTE:
                break
            if file in own:
                warnings.warn(
                    f"data.cache_size={self.size:g} is too small for the images of this training: some are prepared "
                    "more than once.",
                    stacklevel=4,
                )
            file.unlink(missing_ok=True)
            total -= size


def _packed(image: Image) -> dict[str, Tensor]:
    """Return an image as tensors in the smallest types that hold them."""
    tensors: dict[str, Tensor] = {"data": image.data, "affine": image.grid.affine}
    if image.mask is not None:
        whole = image.mask.to(torch.uint8)
        tensors["mask"] = whole if bool((whole == image.mask).all()) else image.mask
    if image.labels is not None:
        tensors["labels"] = image.labels.to(_smallest(image.labels))
    if image.landmarks is not None:
        tensors["landmarks"] = image.landmarks
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _unpacked(tensors: Mapping[str, Tensor], subject: Subject) -> Image:
    data = tensors["data"]
    mask, labels = tensors.get("mask"), tensors.get("labels")
    known = torch.tensor([subject.covariates], dtype=data.dtype) if subject.covariates else None
    return Image(
        data,
        Grid(tuple(data.shape[2:]), tensors["affine"]),
        None if mask is None else mask.to(data.dtype),
        None if labels is None else labels.to(torch.int64),
        tensors.get("landmarks"),
        known,
    )


def _smallest(labels: Tensor) -> torch.dtype:
    least, greatest = int(labels.min()), int(labels.max())
    kinds = (torch.uint8, torch.uint16, torch.int32)
    fits = [kind for kind in kinds if torch.iinfo(kind).min <= least and greatest <= torch.iinfo(kind).max]
    return fits[0] if fits else torch.int64


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _opened(file: Path) -> dict[str, Tensor] | None:
    """Map a stored image into memory; ``None`` if there is none, or a damaged one, which is removed."""
    try:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        os.utime(file)  # it was used
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        with suppress(OSError):
            file.unlink(missing_ok=True)
        return None
    return tensors if {"data", "affine"} <= tensors.keys() <= set(ROLES) else None


def _write(file: Path, content: bytes) -> None:
    try:
        write_atomically(file, lambda part: Path(part).write_bytes(content))
    except InputError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise InputError(
            f"The folder of data.cache cannot be written: {file.parent}: {reason}. Make room, set data.cache to "
            "another folder or to null, or lower data.cache_size."
        ) from error


def _recipe(space: ModelSpace) -> str:
    """Return all that the preparation of an image depends on, besides its files."""
    settings = {key: np.asarray(value).tolist() for key, value in asdict(space).items()}
    versions = [_code(), _source(type(space).__module__), torch.__version__, sitk.Version.VersionString()]
    return json.dumps([type(space).__qualname__, settings, versions], sort_keys=True)


@functools.cache
def _code() -> str:
    return "".join(_source(f"learnreg.{name}") for name in SOURCES)


@functools.cache
def _source(module: str) -> str:
    """Return a hash of the code of a module."""
    try:
        code = inspect.getsource(importlib.import_module(module))
    except (OSError, TypeError):  # a class of an interactive session
        return module
    return hashlib.sha256(code.encode()).hexdigest()
