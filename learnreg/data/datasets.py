"""Data sets of pairs on a model's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from learnreg.data.augmentation import reoriented
from learnreg.data.formats import Pair, Subject
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.orientation import Orientation
from learnreg.transforms import Transform

ImagePair = tuple[Image, Image]
Augmentation = Callable[[Image], Image]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with what is known of it.

    Args:
        name: For tables.
        fixed: With labels or landmarks, if they are known.
        moving: With labels or landmarks, if they are known.
        truth: The true transform, fixed to moving, or ``None``.
    """

    name: str
    fixed: Image
    moving: Image
    truth: Transform | None = None


def centered(image: Image) -> Image:
    """Return the image with the center of its field of view moved to 0."""
    grid = Grid.regular(image.grid.shape, image.grid.spacing[0].tolist(), direction=image.grid.direction[0])
    landmarks = None if image.landmarks is None else image.landmarks - image.grid.center.unsqueeze(1)
    return replace(image, grid=grid, landmarks=landmarks)


@dataclass(frozen=True)
class Augment:
    """Random changes of a pair that keep the registration task valid; the draws are from torch's generator.

    Args:
        image: Changes one image; each image draws its own.
        orientations: Turn both images alike, see :func:`learnreg.data.augmentation.reoriented`.
    """

    image: Augmentation | None = None
    orientations: bool = False

    def __call__(self, pair: ImagePair) -> ImagePair:
        """Change both images of a pair."""
        fixed, moving = pair
        if self.image is not None:
            fixed, moving = self.image(fixed), self.image(moving)
        if self.orientations:
            turn = Orientation.random(fixed.ndim)
            fixed, moving = reoriented(fixed, turn), reoriented(moving, turn)
        return fixed, moving


class PairDataset(Dataset[ImagePair], Generic[S]):
    """The given pairs, in order.

    Args:
        pairs: Fixed and moving subjects.
        load: Subject to image.
        augment: Applied to a pair, such as :class:`Augment`; ``None`` changes nothing.
    """

    def __init__(
        self, pairs: Sequence[tuple[S, S]], load: Callable[[S], Image], *, augment: Augment | None = None
    ) -> None:
        self.pairs, self.load, self.augment = list(pairs), load, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, index: int) -> tuple[S, S]:
        """Return the fixed and the moving subject of an index."""
        return self.pairs[index]

    def __getitem__(self, index: int) -> ImagePair:
        fixed, moving = (self.load(subject) for subject in self.pair(index))
        return (fixed, moving) if self.augment is None else self.augment((fixed, moving))


class Drawn(Dataset[T]):
    """Data set whose samples a function makes from their numbers.

    Args:
        count: Number of samples.
        draw: From 0 to ``count - 1``, or any number of an endless stream, to a sample.
    """

    def __init__(self, count: int, draw: Callable[[int], T]) -> None:
        self.count, self.draw = count, draw

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> T:
        return self.draw(index)


class OrderedPairs(PairDataset[S]):
    """All ``n (n - 1)`` ordered pairs of different subjects; shuffle them.

    Args:
        subjects: At least two.
        load: Subject to image.
        augment: See :class:`PairDataset`.

    Raises:
        InputError: There are fewer than two subjects.
    """

    def __init__(self, subjects: Sequence[S], load: Callable[[S], Image], *, augment: Augment | None = None) -> None:
        if len(subjects) < 2:
            raise InputError(f"Pairs need at least 2 subjects, got {len(subjects)}.")
        super().__init__((), load, augment=augment)
        self.subjects = list(subjects)

    def __len__(self) -> int:
        return len(self.subjects) * (len(self.subjects) - 1)

    def pair(self, index: int) -> tuple[S, S]:
        first, second = divmod(index, len(self.subjects) - 1)
        return self.subjects[first], self.subjects[second + (second >= first)]


def within_groups(subjects: Sequence[Subject]) -> list[Pair]:
    """Return all ordered pairs of images of one group, such as the visits of a patient.

    Raises:
        InputError: No group has two images.
    """
    pairs = [(f, m) for f, m in permutations(subjects, 2) if f.group is not None and f.group == m.group]
    if not pairs:
        raise InputError("No two images have the same `group`; give a CSV with a column of it, or data.pairing=all.")
    return pairs


def reversed_pairs(subjects: Sequence[Subject]) -> list[Pair]:
    """Pair the subjects with the subjects in reversed order, the protocol of Learn2Reg's hippocampus task."""
    return [(f, m) for f, m in zip(subjects, reversed(subjects), strict=True) if f is not m]


def collate(pairs: Sequence[ImagePair]) -> ImagePair:
    """Combine pairs into a batch."""
    return stack([fixed for fixed, _ in pairs]), stack([moving for _, moving in pairs])
