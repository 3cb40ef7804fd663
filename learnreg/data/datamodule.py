"""The Lightning data module: random training pairs, fixed validation pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from learnreg.data.checks import check_subjects
from learnreg.data.datasets import (
    Augmentation,
    Case,
    ImagePair,
    OrderedPairs,
    PairDataset,
    collate,
    reversed_pairs,
    within_groups,
)
from learnreg.data.formats import Pair, Subject, read_pairs, read_subjects
from learnreg.data.preprocessing import ModelSpace
from learnreg.data.store import ImageStore
from learnreg.errors import InputError
from learnreg.typing import PathLike


class RegistrationData(pl.LightningDataModule):
    """Pairs from a folder, a CSV or a Learn2Reg ``dataset.json``.

    Unpaired images train as all ordered pairs, shuffled; ``trainer.limit_train_batches`` sets the length of an epoch.
    Validation pairs each image of its block with the block in reversed order. If the data set prescribes pairs (a CSV
    with ``fixed,moving``), the blocks select from those.

    Args:
        path: See :func:`learnreg.data.read_subjects` and :func:`learnreg.data.read_pairs`.
        space: The grid to which all images are resampled.
        train: ``[first, last)`` positions in the order of the data set.
        validation: ``[first, last)`` positions, apart from ``train``.
        batch_size: Pairs per step and device.
        validation_pairs: Maximum number of validation pairs.
        augmentation: ``image -> image``, for training.
        num_workers: Processes that load; 0 loads in the main process.
        pairing: Of unpaired images: ``"all"``, or ``"within"`` the groups of the column ``group`` of a CSV.
        atlas: An image file that is the fixed image of every pair.
        atlas_labels: Its segmentation.
        covariates: Columns of a CSV of unpaired images that hold numbers, see :attr:`learnreg.image.Image.covariates`.
        cache: A folder that keeps the prepared images for all processes and for later runs, see
            :class:`learnreg.data.ImageStore`; ``None`` writes nothing.
        cache_size: GB that the folder may take.
        memory: GB that prepared images may take in memory, without ``cache``.

    Raises:
        InputError: The pairing is unknown, a block is not ``[first, last)``, or a number is too small.
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        path: PathLike,
        space: ModelSpace,
        *,
        train: Sequence[int],
        validation: Sequence[int],
        batch_size: int = 1,
        validation_pairs: int | None = None,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        pairing: Literal["all", "within"] = "all",
        atlas: PathLike | None = None,
        atlas_labels: PathLike | None = None,
        covariates: Sequence[str] = (),
        cache: PathLike | None = None,
        cache_size: float = 20.0,
        memory: float = 4.0,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise InputError(f"data.{name} must be at least {least}, got {value}.")
        if validation_pairs is not None and validation_pairs < 1:
            raise InputError(f"data.validation_pairs must be at least 1, or null for all, got {validation_pairs}.")
        self.path, self.space = path, space
        self.blocks = {"train": _block("train", train), "validation": _block("validation", validation)}
        self.batch_size = batch_size
        self.validation_pairs, self.augmentation = validation_pairs, augmentation
        self.num_workers = num_workers
        if pairing not in ("all", "within"):
            raise InputError(f"data.pairing is all or within, got {pairing!r}.")
        self.pairing = pairing
        files = [None if file is None else Path(file).expanduser() for file in (atlas, atlas_labels)]
        self.atlas = None if files[0] is None else Subject(files[0], files[1])
        self.covariates = tuple(covariates)
        self.load = ImageStore(space, cache, size=cache_size, memory=memory)
        self._pairs: list[Pair] | None = None
        self._subjects: list[Subject] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the list of subjects; images are read when they are needed.

        Raises:
            InputError: A block is empty, exceeds the data or holds no pair.
        """
        if self._subjects or self._pairs:
            return
        self._pairs = read_pairs(self.path)
        self._subjects = [] if self._pairs else read_subjects(self.path, self.covariates)
        count = len(self._pairs or self._subjects)
        for name, (first, last) in self.blocks.items():
            if not 0 <= first < last <= count:
                kind = "pairs" if self._pairs else "images"
                raise InputError(
                    f"data.{name}=[{first}, {last}] does not lie within the {count} {kind} of {self.path}."
                )
            if not self._pairs_of(name):
                raise InputError(
                    f"data.{name}=[{first}, {last}] holds one image, and a pair needs two; set a block of at least two."
                )

    def check(self, needs: Sequence[str] = ()) -> None:
        """Check the files of both blocks by their headers, before the training.

        Args:
            needs: What the training needs of every image, see :attr:`learnreg.training.RegistrationModule.needs`.

        Raises:
            InputError: An image lacks what is needed, or files do not fit together.
        """
        for name in self.blocks:
            first, last = self.blocks[name]
            paired = [subject for pair in self.pairs(name) for subject in pair]
            check_subjects(list(dict.fromkeys([*self._subjects[first:last], *paired])), needs, self.space.shape or ())

    def pairs(self, name: str = "validation") -> list[Pair]:
        """Return the pairs of a block."""
        self.setup()
        return self._pairs_of(name)

    def _pairs_of(self, name: str) -> list[Pair]:
        first, last = self.blocks[name]
        if self._pairs:
            return self._pairs[first:last]
        subjects = self._subjects[first:last]
        if self.atlas is not None:
            return [(self.atlas, subject) for subject in subjects]
        return within_groups(subjects) if self.pairing == "within" else reversed_pairs(subjects)

    def cases(self, count: int | None = None) -> Iterator[Case]:
        """Yield validation pairs on the model's grid."""
        for fixed, moving in self.pairs()[:count]:
            yield Case(f"{fixed.name} < {moving.name}", self.load(fixed), self.load(moving))

    def train_dataloader(self) -> DataLoader[ImagePair]:
        self.setup()
        if self._pairs is None and self.atlas is None and self.pairing == "all":
            first, last = self.blocks["train"]
            ordered = OrderedPairs(self._subjects[first:last], self.load, augmentation=self.augmentation)
            return self._loader(ordered, shuffle=True)
        augmentation = None if self._pairs or self.atlas else self.augmentation  # prescribed pairs are not changed
        return self._loader(PairDataset(self.pairs("train"), self.load, augmentation=augmentation), shuffle=True)

    def val_dataloader(self) -> DataLoader[ImagePair]:
        return self._loader(PairDataset(self.pairs()[: self.validation_pairs], self.load), shuffle=False, batch_size=1)

    def _loader(
        self, dataset: PairDataset[Subject], *, shuffle: bool, batch_size: int | None = None
    ) -> DataLoader[ImagePair]:
        return DataLoader(
            dataset,
            batch_size=batch_size or self.batch_size,
            shuffle=shuffle,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=False,
        )


def _block(name: str, ends: Sequence[int]) -> tuple[int, int]:
    if len(ends) != 2:
        raise InputError(f"data.{name} takes [first, last), got {list(ends)}.")
    return int(ends[0]), int(ends[1])
