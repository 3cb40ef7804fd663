"""Training pairs as a pure function of a seed and an index, equal on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from learnreg.data.datasets import ImagePair, collate
from learnreg.errors import InputError
from learnreg.randomness import derived_seed, seeded


def shuffled(index: int, count: int, *key: object) -> int:
    """Return the place of an index in a pseudorandom permutation of ``range(count)``, without a list of it.

    A Feistel network permutes the smallest square of a power of two that holds ``count``; places beyond ``count`` are
    permuted again until one lies within.

    Args:
        index: From 0 to ``count - 1``.
        count: Length of the permutation.
        key: Chooses the permutation.

    Source:
        Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002, the cycle-walking cipher.

    Example:
        >>> sorted(shuffled(index, 5, "seed", 0) for index in range(5))
        [0, 1, 2, 3, 4]
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = [derived_seed(*key, turn) for turn in range(4)]
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for turn in keys:
            left, right = right, left ^ (_mixed(right, turn) & ((1 << half) - 1))
        index = (left << half) | right
        if index < count:
            return index


def _mixed(value: int, key: int) -> int:
    """Mix the bits of a number with a key (the finalizer of MurmurHash3)."""
    value = (value * 0x9E3779B1 + key) & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)


class StreamSampler(DistributedSampler[Any]):
    """Indices of an endless stream of samples; each process takes every ``world``-th one.

    Batch ``k`` of all processes together holds the indices from ``k * batch_size * world`` on, whatever ``world`` is.
    An epoch begins after the batches that the trainer has processed, so a resumed training goes on where it stopped.

    Args:
        dataset: Its length is the length of one pass through the data.
        trainer: Says how many batches are done, and which process this is; ``None`` is a single process, whose epochs
            follow each other.
        batch_size: Samples per process and batch.
    """

    def __init__(self, dataset: Dataset[Any], trainer: pl.Trainer | None, batch_size: int) -> None:
        world, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.trainer, self.batch_size = trainer, batch_size
        batches = -(-len(dataset) // (batch_size * world))  # type: ignore[arg-type]
        self.num_samples = batches * batch_size
        self._begun = 0

    @property
    def batches_done(self) -> int:
        """Number of batches that the trainer has processed; those of an earlier process count after a resume."""
        if self.trainer is None:
            raise InputError("A StreamSampler without a trainer does not know how many batches are done.")
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)

    def indices(self, batch: int) -> list[int]:
        """Return the indices of this process in a batch, counted from the first batch of the training."""
        first = batch * self.batch_size
        return [sample * self.num_replicas + self.rank for sample in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[int]:
        if self.trainer is None:
            done, self._begun = self._begun, self._begun + self.num_samples
        else:
            done = self.batches_done * self.batch_size
        for sample in range(done, done + self.num_samples):
            yield sample * self.num_replicas + self.rank


class Stream(Dataset[ImagePair]):
    """Endless stream of pairs from a data set, in an order that is shuffled anew in each pass.

    A pair and its random changes depend on the seed and the index only.

    Args:
        pairs: Data set of one pass.
        seed: Of the order, and of what the data set draws from the global generators.
        shuffle: If ``False``, the order is that of the data set.
    """

    def __init__(self, pairs: Dataset[ImagePair], seed: int, *, shuffle: bool = True) -> None:
        self.pairs, self.seed, self.shuffle = pairs, seed, shuffle

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def place(self, index: int) -> int:
        """Return the place in the data set of an index of the stream."""
        turn, place = divmod(index, len(self))
        return shuffled(place, len(self), "order", self.seed, turn) if self.shuffle else place

    def name(self, index: int) -> str:
        """Return the names of the fixed and the moving subject of an index, as far as they have names."""
        pair = getattr(self.pairs, "pair", None)
        if pair is None:
            return f"pair {index}"
        return " < ".join(str(getattr(subject, "image", "an image")) for subject in pair(self.place(index)))

    def __getitem__(self, index: int) -> ImagePair:
        with self.drawing(index):
            return self.pairs[self.place(index)]

    def drawing(self, index: int) -> AbstractContextManager[None]:
        """Seed what is drawn for an index."""
        return seeded("pair", self.seed, index)


def training_loader(
    pairs: Dataset[ImagePair], trainer: pl.Trainer | None, *, seed: int, batch_size: int, num_workers: int = 0
) -> DataLoader[ImagePair]:
    """Return the loader of an endless shuffled stream of pairs, see :class:`Stream` and :class:`StreamSampler`."""
    stream = Stream(pairs, seed)
    sampler = StreamSampler(stream, trainer, batch_size)
    return DataLoader(
        stream,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def validation_loader(pairs: Dataset[ImagePair], *, num_workers: int = 0) -> DataLoader[ImagePair]:
    """Return the loader of validation pairs, one at a time and in order."""
    return DataLoader(
        pairs, batch_size=1, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
    )
