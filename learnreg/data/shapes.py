"""Training pairs without images: random shapes or your own label maps, in random contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from learnreg.data.datasets import Case, Drawn, ImagePair
from learnreg.data.formats import read_subjects
from learnreg.data.preprocessing import ModelSpace
from learnreg.data.store import ImageStore
from learnreg.data.streams import training_loader, validation_loader
from learnreg.data.synthesis import numbered, painted, random_shapes, random_velocity
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.sampling import sample_labels
from learnreg.typing import PathLike


class ShapesData(pl.LightningDataModule):
    """Label maps, deformed at random and painted with contrasts that are drawn anew for each pair.

    The network learns to ignore contrast, so it registers modalities that it has never seen. Train it with labels as
    supervision: the intensities of a pair are unrelated.

    Args:
        space: The grid of all images; its ``shape`` is needed.
        path: Your label maps, see :func:`learnreg.data.read_subjects`; a pair is two subjects. ``None`` draws random
            shapes; a pair is two deformations of the same shapes.
        train: With ``path``: ``[first, last)`` positions of the data to use.
        labels: Without ``path``: number of shapes.
        size: Without ``path``: smoothness of the noise that makes the shapes, mm.
        magnitude: Of each deformation, mm, see :func:`learnreg.data.random_velocity`.
        smoothness: Of each deformation, mm.
        pairs: Length of an epoch; every pair is drawn anew.
        validation_pairs: Drawn once, apart.
        batch_size: Pairs per step.
        seed: Of all pairs.
        num_workers: Processes that draw training pairs; 0 draws in the main process.
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        space: ModelSpace,
        *,
        path: PathLike | None = None,
        train: Sequence[int] | None = None,
        labels: int = 16,
        size: float = 8.0,
        magnitude: float = 6.0,
        smoothness: float = 10.0,
        pairs: int = 100,
        validation_pairs: int = 6,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if space.shape is None:
            raise InputError("Shapes need the size of the images; set data.space.shape, for example [64, 64, 64].")
        if min(pairs, validation_pairs, batch_size) < 1:
            raise InputError(
                "data.pairs, data.validation_pairs and data.batch_size must be at least 1, got "
                f"{pairs}, {validation_pairs} and {batch_size}."
            )
        if labels < 2:
            raise InputError(f"data.labels is a number of shapes, at least 2, got {labels}.")
        self.space, self.path, self.block = space, path, train
        self.labels, self.size = int(labels), float(size)
        self.magnitude, self.smoothness = float(magnitude), float(smoothness)
        self.counts = int(pairs), int(validation_pairs)
        self.batch_size, self.seed, self.num_workers = int(batch_size), int(seed), int(num_workers)
        self.maps: list[Tensor] = []

    @property
    def grid(self) -> Grid:
        """The grid of all images, its middle at 0."""
        return Grid.regular(tuple(self.space.shape or ()), self.space.spacing)

    def setup(self, stage: str | None = None) -> None:
        """Read the label maps, if there are any."""
        if self.path is None or self.maps:
            return
        first, last = self.block or (0, None)
        load = ImageStore(self.space)
        for subject in read_subjects(self.path)[first:last]:
            labels = load(subject).labels
            if labels is None:
                raise InputError(f"{subject.image} has no labels; contrasts are painted from label maps.")
            self.maps.append(labels)
        if len(self.maps) < 2:
            raise InputError(f"Pairs need the label maps of at least 2 subjects, {self.path} gives {len(self.maps)}.")

    def pair(self, generator: torch.Generator) -> ImagePair:
        """Two images with labels, of unrelated contrasts."""
        if self.maps:
            order = torch.randperm(len(self.maps), generator=generator)
            maps = [self.maps[k] for k in order[:2].tolist()]
        else:
            maps = [random_shapes(self.grid, self.labels, smoothness=self.size, generator=generator)] * 2
        fixed, moving = (self._painted(labels, generator) for labels in maps)
        return fixed, moving

    def _painted(self, labels: Tensor, generator: torch.Generator) -> Image:
        grid = self.grid
        velocity = random_velocity(grid, magnitude=self.magnitude, smoothness=self.smoothness, generator=generator)
        return painted(sample_labels(labels, grid, velocity.map_grid(grid)), grid, generator=generator)

    def cases(self, count: int | None = None) -> Iterator[Case]:
        """Validation pairs."""
        self.setup()
        for number in range(min(self.counts[1], count or self.counts[1])):
            yield Case(f"validation pair {number + 1}", *self.pair(numbered(self.seed, number)))

    def train_dataloader(self) -> DataLoader[ImagePair]:
        drawn = Drawn(self.counts[0], lambda _: self.pair(torch.default_generator))
        return training_loader(
            drawn, self.trainer, seed=self.seed, batch_size=self.batch_size, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[ImagePair]:
        kept = [self.pair(numbered(self.seed, number)) for number in range(self.counts[1])]
        return validation_loader(Drawn(len(kept), kept.__getitem__))
