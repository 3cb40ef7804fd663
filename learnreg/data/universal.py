"""Training pairs for a universal model: random anatomies, transforms, contrasts and acquisitions, without images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from learnreg.data.anatomies import LATTICE, SEGMENTS, Anatomies, Draws, seeds_of, smooth_noise
from learnreg.data.datasets import Case, Drawn, ImagePair
from learnreg.data.mni152 import mni152_template
from learnreg.data.painting import painted_maps, random_contrasts
from learnreg.data.preprocessing import ModelSpace
from learnreg.data.streams import StreamSampler, validation_loader
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.transforms import Affine, Transform, Velocity, chain

CANVAS = 3.2  # size of the space of the anatomies, in halves of an image
LABELS = 12  # labels of a pair; each has several segments
LANDMARKS = 512  # corresponding points of a pair
STEPS = 4  # squarings
VALIDATION = -1_000_000  # validation pairs are those before this index of the stream


class RandomPairs:
    """Batches of pairs, each two deformed views of a random anatomy in two contrasts, with the true correspondence.

    Args:
        shape: ``(z, y, x)`` or ``(y, x)``; the voxels are isotropic, 1 mm.
        rotation: Degrees; the largest angle between the two images.
        scale: The largest factor between their sizes along an axis.
        shift: The largest shift along an axis, in sizes of an image.
        bend: mm per mm of half an image; 95 % of the velocities of one image are shorter at the most.
        templates: Share of the anatomies made from the MNI152 template of nilearn, in 3-D.

    Example:
        >>> fixed, moving, truth = RandomPairs((16, 16), templates=0.0)([1, 2])
        >>> fixed.data.shape, moving.landmarks.shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 512, 2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        rotation: float = 45.0,
        scale: float = 1.4,
        shift: float = 0.2,
        bend: float = 0.2,
        templates: float = 0.3,
    ) -> None:
        self.grid = Grid.regular(tuple(shape))
        self.half = max(shape) / 2
        self.rotation, self.scale, self.shift, self.bend = float(rotation), float(scale), float(shift), float(bend)
        self.templates = float(templates) if self.grid.ndim == 3 else 0.0
        ndim = self.grid.ndim
        self.canvas = Grid.regular((LATTICE,) * ndim, CANVAS * self.half / LATTICE)
        self.tissues = template_tissues(self.half) if self.templates > 0 else None

    def __call__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> tuple[Image, Image, Transform]:
        """Return the fixed and the moving images, with labels and landmarks, and the true transforms.

        Args:
            seeds: One for each pair; a pair depends on its seed only.
            device: Where they are made.
        """
        draws = Draws(seeds, device)
        grid, canvas = self.grid.to(draws.device), self.canvas.to(draws.device)
        tissues = None if self.tissues is None else (self.tissues[0].to(device), self.tissues[1].to(draws.device))
        anatomies = Anatomies(draws, canvas, self.half, tissues, self.templates)
        views, truth = self._geometry(draws, canvas)
        contrasts = random_contrasts(draws, anatomies.is_template)
        groups = draws.uniform(SEGMENTS, high=LABELS + 1).long()
        images = []
        for view, contrast in zip(views, contrasts, strict=True):
            points = view.map_grid(grid).expand(len(seeds), *[-1] * (grid.ndim + 1))
            segments, texture = anatomies.at(points)
            data = painted_maps(draws, segments, texture, points, contrast, self.half)
            labels = groups.gather(1, segments.flatten(1)).reshape(segments.shape) * (segments > 0)
            images.append((data, segments, labels))
        (fixed, segments, fixed_labels), (moving, _, moving_labels) = images
        here, there = self._landmarks(draws, segments, truth, grid)
        return (
            Image(fixed, grid, None, fixed_labels, here),
            Image(moving, grid, None, moving_labels, there),
            truth,
        )

    def _geometry(self, draws: Draws, canvas: Grid) -> tuple[tuple[Transform, Transform], Transform]:
        """Draw the maps from both images to the anatomy; the truth goes through it."""
        placed = self._placed(draws)
        between = self._between(draws)
        bends = [Velocity(self._velocity(draws, canvas), canvas, STEPS) for _ in range(2)]
        fixed = chain(bends[0], Affine(placed))
        there = Affine(placed @ between)
        moving = chain(bends[1], there)
        return (fixed, moving), chain(fixed, there.inverse(), bends[1].inverse())

    def _placed(self, draws: Draws) -> Tensor:
        """Draw how the anatomy lies in the fixed image: any orientation, flips too, and a size."""
        ndim = self.grid.ndim
        order = draws.uniform(ndim).argsort(1)
        signs = torch.where(draws.uniform(ndim) < 0.5, -1.0, 1.0)
        axes = F.one_hot(order, ndim).to(signs) * signs.unsqueeze(-1)
        turned = torch.where(draws.chance(0.3), 180.0, 20.0)
        linear = axes @ rotations(draws, turned, ndim) * draws.uniform(1, 1, low=0.8, high=1.25)
        return _matrices(linear, 0.1 * self.half * draws.uniform(ndim, low=-1, high=1))

    def _between(self, draws: Draws) -> Tensor:
        """Draw the affine map between the two images; a quarter of the pairs are almost aligned."""
        ndim = self.grid.ndim
        share = torch.where(draws.chance(0.25), 0.25, 1.0)
        turn = rotations(draws, self.rotation * share, ndim)
        sizes = self.scale ** (
            share[:, None] * (draws.uniform(1, low=-1, high=1) + draws.uniform(ndim, low=-1, high=1)) / 2
        )
        shear = 0.1 * share.reshape(-1, 1, 1) * draws.uniform(ndim, ndim, low=-1, high=1).triu(1)
        linear = turn @ (torch.eye(ndim, device=draws.device) + shear) @ torch.diag_embed(sizes)
        return _matrices(linear, 2 * self.half * self.shift * share[:, None] * draws.uniform(ndim, low=-1, high=1))

    def _velocity(self, draws: Draws, canvas: Grid) -> Tensor:
        """Draw velocities of several wavelengths."""
        ndim, cell = canvas.ndim, LATTICE / CANVAS  # samples in half an image
        total = canvas.points.new_zeros(len(draws), ndim, *canvas.shape)
        for sigma, weight in ((0.5, 1.0), (0.25, 0.6), (0.12, 0.3)):
            amount = weight * draws.uniform(1)
            noise = smooth_noise(draws, canvas, ndim, torch.full((len(draws),), sigma * cell, device=draws.device))
            total = total + noise * amount.reshape(-1, 1, *[1] * ndim)
        length = total.norm(dim=1).flatten(1)
        longest = length.kthvalue(int(0.95 * length.shape[1]), dim=1).values.clamp(min=1e-6)
        size = self.bend * self.half * draws.uniform() / longest
        return total * size.reshape(-1, 1, *[1] * ndim)

    def _landmarks(self, draws: Draws, segments: Tensor, truth: Transform, grid: Grid) -> tuple[Tensor, Tensor]:
        """Draw points of the anatomy in the fixed image and return where they are in both; NaN where one is outside."""
        flat = draws.integers(segments[0].numel(), LANDMARKS)
        here = grid.points.flatten(0, -2)[flat]
        there = truth(here)
        marked = (segments.flatten(1).gather(1, flat) > 0) & (grid.to_normalized(there).abs() < 1).all(-1)
        unmarked = ~marked.unsqueeze(-1)
        return here.masked_fill(unmarked, torch.nan), there.masked_fill(unmarked, torch.nan)


def rotations(draws: Draws, degrees: float | Tensor, ndim: int) -> Tensor:
    """Draw rotations ``(B, ndim, ndim)`` by at most an angle, about axes of any direction."""
    angle = torch.deg2rad(torch.as_tensor(degrees, device=draws.device)) * draws.uniform(low=-1, high=1)
    if ndim == 2:
        generator = angle.new_tensor([[0.0, -1.0], [1.0, 0.0]]).expand(len(draws), -1, -1)
    else:
        axis = F.normalize(draws.normal(3), dim=1)
        generator = torch.linalg.cross(axis[:, None].expand(-1, 3, -1), torch.eye(3, device=axis.device)[None])
    return torch.matrix_exp(angle.reshape(-1, 1, 1) * generator)


def _matrices(linear: Tensor, offset: Tensor) -> Tensor:
    """Return homogeneous matrices ``(B, D+1, D+1)``."""
    top = torch.cat([linear, offset.unsqueeze(-1)], dim=2)
    last = top.new_zeros(len(top), 1, top.shape[2])
    last[..., -1] = 1
    return torch.cat([top, last], dim=1)


def template_tissues(half: float, *, bands: int = 2) -> tuple[Tensor, Grid]:
    """Return the tissues of the MNI152 template: gray matter, white matter, fluid, and the head in bands of intensity.

    Args:
        half: mm, half the size of an image; the longest side of the template is twice as long.
        bands: Of the head around the brain.

    Returns:
        ``(1, 1, *shape)`` from 0 to ``PARTS``, and their grid, centered at 0.
    """
    template = mni152_template()
    assert template.labels is not None  # noqa: S101 - it has
    labels, data = template.labels, template.data / template.data.max()
    near = F.max_pool3d((labels > 0).float(), 9, stride=1, padding=4)
    near = -F.max_pool3d(-near, 9, stride=1, padding=4)  # closed: the brain with its fluid
    head = 4 + (data > 0.35).long()
    tissues = torch.where(labels > 0, labels, torch.where(near > 0, 3, torch.where(data > 0.05, head, 0)))
    halved = tissues[..., ::2, ::2, ::2].float()
    return halved, Grid.regular(tuple(halved.shape[2:]), 2 * half / max(halved.shape[2:]))


class UniversalData(pl.LightningDataModule):
    """Endless random pairs, made on the device of the training; a pair depends on the seed and its index only.

    Args:
        space: Grid of the images; its ``shape`` is needed. Its spacing is what the model uses at inference.
        pairs: Length of an epoch.
        validation_pairs: Drawn once, apart.
        batch_size: Pairs per step and device.
        rotation: See :class:`RandomPairs`.
        bend: See :class:`RandomPairs`.
        templates: See :class:`RandomPairs`; 0 without nilearn.
        seed: Of all pairs.

    Raises:
        InputError: ``space`` has no shape, or a number is below 1.
    """

    def __init__(
        self,
        space: ModelSpace,
        *,
        pairs: int = 1000,
        validation_pairs: int = 8,
        batch_size: int = 1,
        rotation: float = 45.0,
        bend: float = 0.2,
        templates: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if space.shape is None:
            raise InputError("Random pairs need the size of the images; set data.space.shape, such as [64, 64, 64].")
        if min(pairs, validation_pairs, batch_size) < 1:
            raise InputError(
                "data.pairs, data.validation_pairs and data.batch_size must be at least 1, got "
                f"{pairs}, {validation_pairs} and {batch_size}."
            )
        self.space, self.batch_size, self.seed = space, int(batch_size), int(seed)
        self.counts = int(pairs), int(validation_pairs)
        self.draw = RandomPairs(space.shape, rotation=rotation, bend=bend, templates=templates)

    def setup(self, stage: str | None = None) -> None:
        """Do nothing: pairs are made when they are needed."""

    def cases(self, count: int | None = None) -> Iterator[Case]:
        """Yield validation pairs with their true transforms."""
        for number in range(min(self.counts[1], count or self.counts[1])):
            fixed, moving, truth = self.draw(seeds_of(self.seed, [VALIDATION + number]))
            yield Case(f"validation pair {number + 1}", fixed, moving, truth)

    def train_dataloader(self) -> DataLoader[Any]:
        numbers = Drawn(self.counts[0], int)  # the pairs are made on the device
        sampler = StreamSampler(numbers, self.trainer, self.batch_size)
        return DataLoader(numbers, batch_size=self.batch_size, sampler=sampler)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> ImagePair:
        """Make the pairs of a training batch from its indices."""
        if not isinstance(batch, Tensor):
            return batch  # type: ignore[no-any-return]
        with torch.no_grad():
            fixed, moving, _ = self.draw(seeds_of(self.seed, batch.tolist()), batch.device)
        return fixed, moving

    def val_dataloader(self) -> DataLoader[ImagePair]:
        kept = [(case.fixed, case.moving) for case in self.cases()]
        return validation_loader(Drawn(len(kept), kept.__getitem__))
