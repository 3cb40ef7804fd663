"""Subjects with known truth, made from the MNI152 template inside of the nilearn wheel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from learnreg.data.datasets import Case, ImagePair, OrderedPairs, PairDataset
from learnreg.data.preprocessing import ModelSpace, normalized, onto_grid
from learnreg.data.streams import training_loader, validation_loader
from learnreg.data.synthesis import changed_intensities, numbered, random_velocity
from learnreg.errors import InputError, MissingPackageError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import read_image
from learnreg.transforms import Composite, Velocity

GRAY_MATTER, WHITE_MATTER = 1, 2


def mni152_template() -> Image:
    """Return the ICBM 2009a T1 brain at 1 mm, 189x233x197, with the labels 1 for gray matter and 2 for white matter.

    Raises:
        MissingPackageError: nilearn is not installed.

    Source:
        Fonov et al., Unbiased average age-appropriate atlases, NeuroImage 2011; shipped by nilearn.
    """
    if find_spec("nilearn") is None:
        raise MissingPackageError(
            "The template is part of nilearn, which is not installed: pip install 'learnreg[demo]'."
        )
    folder = resources.files("nilearn") / "datasets" / "data"

    def read(kind: str) -> Image:
        with resources.as_file(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") as file:
            return read_image(file)

    head, gray, white = read("t1"), read("gm").data, read("wm").data
    tissue = torch.where(white > gray, WHITE_MATTER, GRAY_MATTER)
    labels = torch.where(torch.maximum(gray, white) > 0.5 * gray.max(), tissue, 0)
    return Image(head.data, head.grid, None, labels)


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A subject, and the velocity whose flow maps its points to the template."""

    image: Image
    velocity: Velocity


class MNI152Data(pl.LightningDataModule):
    """Random diffeomorphisms and intensity changes of the MNI152 brain.

    Args:
        spacing: mm, of all images; 2 to 4.
        subjects: For training.
        validation_subjects: For validation and the report, drawn apart.
        magnitude: mm, see :func:`learnreg.data.random_velocity`.
        smoothness: mm.
        batch_size: Pairs per step.
        seed: Of the subjects and of the order of the pairs.

    Raises:
        InputError: There are fewer than two subjects.
    """

    def __init__(
        self,
        *,
        spacing: float = 4.0,
        subjects: int = 24,
        validation_subjects: int = 6,
        magnitude: float = 8.0,
        smoothness: float = 20.0,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spacing, self.counts = float(spacing), (int(subjects), int(validation_subjects))
        if min(self.counts) < 2:
            raise InputError(f"data.subjects and data.validation_subjects must be at least 2, got {self.counts}.")
        self.magnitude, self.smoothness = float(magnitude), float(smoothness)
        self.batch_size, self.seed = int(batch_size), int(seed)
        template = mni152_template()
        self.grid = ModelSpace(spacing).grid_for(template.grid)
        self.space = ModelSpace(spacing, self.grid.shape)
        self._template: Image | None = template
        self._train: list[Synthetic] = []
        self._validation: list[Synthetic] = []

    def setup(self, stage: str | None = None) -> None:
        if self._template is None:
            return
        template = normalized(self._template)
        made = [self._subject(template, self.grid, number) for number in range(sum(self.counts))]
        self._train, self._validation = made[: self.counts[0]], made[self.counts[0] :]
        self._template = None

    def _subject(self, template: Image, grid: Grid, number: int) -> Synthetic:
        generator = numbered(self.seed, number)
        velocity = random_velocity(grid, magnitude=self.magnitude, smoothness=self.smoothness, generator=generator)
        image = onto_grid(template, grid, velocity)
        return Synthetic(changed_intensities(image, generator=generator), velocity)

    def cases(self, count: int | None = None) -> Iterator[Case]:
        """Yield validation pairs with their true transforms, ``exp(-v_moving) o exp(v_fixed)``."""
        self.setup()
        for number, (fixed, moving) in enumerate(_neighbors(self._validation)[:count]):
            truth = Composite((fixed.velocity, moving.velocity.inverse()))
            yield Case(f"validation pair {number + 1}", fixed.image, moving.image, truth)

    def train_dataloader(self) -> DataLoader[ImagePair]:
        dataset = OrderedPairs(self._train, lambda subject: subject.image)
        return training_loader(dataset, self.trainer, seed=self.seed, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[ImagePair]:
        dataset = PairDataset(_neighbors(self._validation), lambda subject: subject.image)
        return validation_loader(dataset)


def _neighbors(subjects: Sequence[Synthetic]) -> list[tuple[Synthetic, Synthetic]]:
    """Pair each subject with the next one."""
    return list(zip(subjects, [*subjects[1:], *subjects[:1]], strict=True))
