"""The Lightning data module: random training pairs, fixed validation pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from learnreg.data.checks import check_subjects
from learnreg.data.datasets import (
    Augment,
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
from learnreg.data.splits import Choice, T, check_apart, chosen, fold_of, positions
from learnreg.data.store import ImageStore
from learnreg.data.streams import training_loader, validation_loader
from learnreg.errors import InputError
from learnreg.image import unstacked
from learnreg.typing import PathLike


class RegistrationData(pl.LightningDataModule):
    """Pairs from a folder, BIDS, a CSV or TSV, or a Learn2Reg ``dataset.json``.

    Unpaired images train as all ordered pairs, shuffled; ``trainer.limit_train_batches`` sets the length of an epoch,
    and the next epoch goes on where it stopped. A training pair and its augmentation depend on the seed and on the
    number of pairs drawn before, so the pairs of a step are the same for any number of processes and workers, and after
    a resume.

    Validation pairs each image of its block with the block in reversed order. If the data set prescribes pairs (a CSV
    with ``fixed,moving``), the blocks select from those.

    Args:
        path: See :func:`learnreg.data.read_subjects` and :func:`learnreg.data.read_pairs`.
        space: The grid to which all images are resampled.
        train: ``[first, last)`` positions in the order of the data set, or names of images or groups; ``None`` takes
            those whose column ``split`` is ``train``.
        validation: The same, apart from ``train``.
        folds: Instead of both: number of parts for cross-validation, see :func:`learnreg.data.fold_of`.
        fold: The part to validate with, from 0.
        batch_size: Pairs per step and device.
        validation_pairs: Maximum number of validation pairs.
        augmentation: ``image -> image``, for training.
        orientations: In training, turn and flip both images of a pair alike, by any of the 48 orientations of a volume
            (8 of an image), so that the network does not depend on the orientation that a header states. The voxels of
            ``space`` must be isotropic and, with more than one pair in a batch, its sides equal.
        augment_on: Where it runs: ``"loader"``, in the processes that load; ``"device"``, where the network trains, on
            the batch that has arrived there; ``"auto"`` is the device if that is a GPU. The draws are the same.
        num_workers: Processes that load; 0 loads in the main process.
        pairing: Of unpaired images: ``"all"``, or ``"within"`` the groups of the column ``group`` of a CSV.
        atlas: An image file that is the fixed image of every pair.
        atlas_labels: Its segmentation.
        covariates: Columns of a CSV of unpaired images that hold numbers, see :attr:`learnreg.image.Image.covariates`.
        seed: Of the order of the pairs and of the augmentation.
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
        train: Choice = None,
        validation: Choice = None,
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 1,
        validation_pairs: int | None = None,
        augmentation: Augmentation | None = None,
        orientations: bool = False,
        augment_on: Literal["auto", "loader", "device"] = "auto",
        num_workers: int = 0,
        pairing: Literal["all", "within"] = "all",
        atlas: PathLike | None = None,
        atlas_labels: PathLike | None = None,
        covariates: Sequence[str] = (),
        seed: int = 0,
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
        self.choices = {"train": train, "validation": validation}
        for name, choice in self.choices.items():
            if choice is not None and folds is not None:
                raise InputError(f"data.folds splits the data; set data.{name}=null.")
            if choice is not None and not any(isinstance(value, str) for value in choice):
                positions(name, choice)
        self.folds, self.fold = folds, fold
        self.batch_size = batch_size
        self.validation_pairs, self.augmentation = validation_pairs, augmentation
        self.orientations = orientations
        if orientations:
            _check_orientations(space, batch_size)
        if augment_on not in ("auto", "loader", "device"):
            raise InputError(f"data.augment_on is auto, loader or device, got {augment_on!r}.")
        self.augment_on = augment_on
        self.num_workers = num_workers
        if pairing not in ("all", "within"):
            raise InputError(f"data.pairing is all or within, got {pairing!r}.")
        self.pairing = pairing
        files = [None if file is None else Path(file).expanduser() for file in (atlas, atlas_labels)]
        self.atlas = None if files[0] is None else Subject(files[0], files[1])
        self.covariates = tuple(covariates)
        self.seed = int(seed)
        self.load = ImageStore(space, cache, size=cache_size, memory=memory)
        self._paired = False
        self._blocks: dict[str, list[Any]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the list of subjects; images are read when they are needed.

        Raises:
            InputError: A block is empty, exceeds the data or holds no pair.
        """
        if self._blocks:
            return
        pairs = read_pairs(self.path)
        self._paired = pairs is not None
        blocks: dict[str, list[Any]] = (
            self._split(pairs) if pairs else self._split(read_subjects(self.path, self.covariates))
        )
        for name, items in blocks.items():
            if not self._pairs_of(items):
                raise InputError(
                    f"{self._said(name)} holds {'one image' if items else 'no image'}, and a pair needs two; set a "
                    "block of at least two."
                )
        self._blocks = blocks

    def _split(self, items: list[T]) -> dict[str, list[T]]:
        if self.folds is not None:
            train, validation = fold_of(items, self.folds, self.fold)
            return {"train": train, "validation": validation}
        return {name: chosen(name, items, choice, self.path) for name, choice in self.choices.items()}

    def _said(self, name: str) -> str:
        """Return a block as it was given, for error messages."""
        if self.folds is not None:
            return f"data.{name} of data.fold={self.fold}"
        choice = self.choices[name]
        return f"data.{name} by the column split" if choice is None else f"data.{name}={list(choice)}"

    def subjects(self, name: str = "train") -> list[Subject]:
        """Return the images of a block, each once."""
        self.setup()
        items = self._blocks[name]
        return list(
            dict.fromkeys(subject for item in items for subject in (item if isinstance(item, tuple) else (item,)))
        )

    @property
    def channels(self) -> int:
        """Number of channels of the first image, from its header."""
        return self.subjects()[0].channel_count()

    def check(self, needs: Sequence[str] = ()) -> None:
        """Check the files of both blocks by their headers, before the training.

        Args:
            needs: What the training needs of every image, see :attr:`learnreg.training.RegistrationModule.needs`.

        Raises:
            InputError: An image lacks what is needed, files do not fit together, or the blocks share an image or group.
        """
        blocks = {name: self.subjects(name) for name in ("train", "validation")}
        for name, subjects in blocks.items():
            atlas = [] if self.atlas is None else [self.atlas]
            pairs = self.pairs(name) if self._paired else None
            check_subjects(list(dict.fromkeys([*atlas, *subjects])), needs, self.space.shape or (), pairs)
        common = {None} if not self._paired else {f for block in ("train", "validation") for f, _ in self.pairs(block)}
        shared = common if len(common) == 1 else set()  # the atlas of all pairs
        check_apart({name: [s for s in subjects if s not in shared] for name, subjects in blocks.items()}, content=True)

    def pairs(self, name: str = "validation") -> list[Pair]:
        """Return the pairs of a block."""
        self.setup()
        return self._pairs_of(self._blocks[name])

    def _pairs_of(self, items: Sequence[Subject] | Sequence[Pair]) -> list[Pair]:
        pairs = [item for item in items if isinstance(item, tuple)]
        subjects = [item for item in items if isinstance(item, Subject)]
        if pairs or not subjects:
            return pairs
        if self.atlas is not None:
            return [(self.atlas, subject) for subject in subjects]
        return within_groups(subjects) if self.pairing == "within" else reversed_pairs(subjects)

    def cases(self, count: int | None = None) -> Iterator[Case]:
        """Yield validation pairs on the model's grid."""
        for fixed, moving in self.pairs()[:count]:
            yield Case(f"{fixed.name} < {moving.name}", self.load(fixed), self.load(moving))

    def train_dataloader(self) -> DataLoader[ImagePair]:
        self.setup()
        return training_loader(
            self._training_pairs(),
            self.trainer,
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def _training_pairs(self) -> Dataset[ImagePair]:
        augment = None if self._augments_on_device else self._augment
        if not self._prescribed and self.pairing == "all":
            return OrderedPairs(self.subjects("train"), self.load, augment=augment)
        return PairDataset(self.pairs("train"), self.load, augment=augment)

    @property
    def _prescribed(self) -> bool:
        return self._paired or self.atlas is not None

    @property
    def _augment(self) -> Augment | None:
        """What changes a training pair; the images of prescribed pairs are only turned."""
        change = Augment(None if self._prescribed else self.augmentation, self.orientations)
        return None if change == Augment() else change

    @property
    def _augments_on_device(self) -> bool:
        if self.augment_on == "auto":
            return self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"
        return self.augment_on == "device"

    def on_after_batch_transfer(self, batch: ImagePair, dataloader_idx: int) -> ImagePair:
        """Change a training batch on the device, each pair by what its index draws."""
        augment = self._augment
        if augment is None or not (self._augments_on_device and self._trains):
            return batch
        sampler = self.trainer.train_dataloader.sampler  # type: ignore[union-attr]
        pairs = zip(*(unstacked(images) for images in batch), strict=True)
        changed = []
        for index, pair in zip(sampler.indices(sampler.batches_done), pairs, strict=True):
            with sampler.dataset.drawing(index):
                changed.append(augment(pair))
        return collate(changed)

    @property
    def _trains(self) -> bool:
        return self.trainer is not None and self.trainer.training

    def val_dataloader(self) -> DataLoader[ImagePair]:
        pairs = PairDataset(self.pairs()[: self.validation_pairs], self.load)
        return validation_loader(pairs, num_workers=self.num_workers)


def _check_orientations(space: ModelSpace, batch_size: int) -> None:
    """Raise where the orientations of a pair would change the spacing of the model, or the shape within a batch."""
    spacing = {space.spacing} if isinstance(space.spacing, (int, float)) else set(space.spacing)
    if len(spacing) > 1:
        raise InputError(f"data.orientations needs one data.space.spacing for all axes, got {list(spacing)}.")
    if batch_size > 1 and (space.shape is None or len(set(space.shape)) > 1):
        given = None if space.shape is None else list(space.shape)
        raise InputError(
            f"data.orientations turns pairs of one batch differently, so that data.space.shape={given} needs equal "
            "sides; set them, or data.batch_size=1 with trainer.accumulate_grad_batches."
        )
