"""Random anatomies: maps of segments and texture that are functions of space, drawn in batches on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from learnreg.grid import Grid
from learnreg.randomness import derived_seed
from learnreg.sampling import sample
from learnreg.typing import PointTensor

LATTICE = 32  # samples of a noise along each axis
REGIONS, PARTS = 10, 5  # regions, and parts that each of them can have
SHEETS, SHELLS = 2, 3  # thin structures, and layers around a body
SEGMENTS = 1 + REGIONS * PARTS + SHEETS + SHELLS  # with the background, 0
SHEET, SHELL = 1 + REGIONS * PARTS, 1 + REGIONS * PARTS + SHEETS
UNIFORMS = 2048  # uniform numbers of an item


class Draws:
    """Random numbers of a batch; each item has its own, whatever else is in the batch.

    Uniform numbers come from one table, which is drawn on the CPU and copied once; normal ones are drawn on the device.

    Args:
        seeds: One for each item.
        device: Of the numbers.

    Example:
        >>> both, second = Draws([1, 2], "cpu"), Draws([2], "cpu")
        >>> torch.equal(both.normal(3)[1], second.normal(3)[0]), torch.equal(both.uniform(3)[1], second.uniform(3)[0])
        (True, True)
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._normal = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        tables = [torch.rand(UNIFORMS, generator=torch.Generator().manual_seed(~seed & 2**32 - 1)) for seed in seeds]
        self._uniform, self._used = torch.stack(tables).to(self.device), 0

    def __len__(self) -> int:
        return len(self._normal)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers ``(B, *shape)``."""
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in self._normal])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return integers ``(B, *shape)`` from 0 to ``high - 1``."""
        return torch.stack([torch.randint(high, shape, generator=g, device=self.device) for g in self._normal])

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return uniform numbers ``(B, *shape)`` from ``low`` to ``high``."""
        count = torch.Size(shape).numel()
        if self._used + count > UNIFORMS:
            raise RuntimeError(f"An item has {UNIFORMS} uniform numbers, asked for {self._used + count}.")
        found = self._uniform[:, self._used : self._used + count].reshape(-1, *shape)
        self._used += count
        return low + (high - low) * found

    def chance(self, share: float) -> Tensor:
        """Return ``(B,)`` truth values that hold with a probability."""
        return self.uniform() < share


def seeds_of(seed: int, indices: Sequence[int]) -> list[int]:
    """Return the seeds of the items of a stream."""
    return [derived_seed("item", seed, index) for index in indices]


def smooth_noise(draws: Draws, grid: Grid, channels: int, sigma: Tensor) -> Tensor:
    """Draw smooth noise of unit variance.

    Args:
        draws: Of the batch.
        grid: Where it is sampled.
        channels: Independent noises of an item.
        sigma: ``(B,)`` standard deviation of the Gaussian that smooths each item, in samples.

    Returns:
        ``(B, channels, *grid.shape)``.
    """
    noise = draws.normal(channels, *grid.shape)
    for axis, size in enumerate(grid.shape):
        noise = along(gaussians(size, sigma), noise, axis)
    deviation = noise.flatten(2).std(2).clamp(min=1e-6)
    return noise / deviation.reshape(*deviation.shape, *[1] * grid.ndim)


def gaussians(size: int, sigma: Tensor) -> Float[Tensor, "B n n"]:
    """Return a Gaussian average ``(B, size, size)`` for each ``sigma`` in samples; rows sum to 1."""
    index = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (index[:, None] - index[None]) / sigma.clamp(min=1e-3).reshape(-1, 1, 1)
    weights = torch.exp(-0.5 * distance.square().clamp(max=160.0))
    return weights / weights.sum(2, keepdim=True)


def along(matrices: Float[Tensor, "B m n"], values: Tensor, axis: int) -> Tensor:
    """Apply the matrix of each item along a spatial axis of ``(B, C, *shape)``."""
    moved = values.movedim(2 + axis, 1)
    product = torch.bmm(matrices, moved.flatten(2))
    return product.reshape(len(values), matrices.shape[1], *moved.shape[2:]).movedim(1, 2 + axis)


def each(values: Tensor, ndim: int) -> Tensor:
    """Reshape ``(B, ...)`` to be multiplied with volumes."""
    return values.reshape(*values.shape, *[1] * ndim)


def gathered(values: Tensor, grid: Grid, points: PointTensor) -> Tensor:
    """Interpolate many channels at points: as :func:`learnreg.sampling.sample`, a third of the time, no gradient.

    Args:
        values: ``(B, C, *grid.shape)``.
        grid: Where they are sampled; beyond its border they continue.
        points: ``(B, *P, D)``, mm.

    Returns:
        ``(B, C, *P)``.
    """
    ndim, batch = grid.ndim, len(values)
    table = values.flatten(2).mT.flatten(0, 1).contiguous()  # the channels of a sample lie side by side
    last = torch.tensor(grid.shape[::-1], device=values.device) - 1
    index = grid.to_index(points).flatten(1, -2).clamp(min=torch.zeros_like(last), max=last)
    below = torch.minimum(index.floor(), last - 1)
    above = index - below
    strides = torch.tensor([math.prod(grid.shape[ndim - k :]) for k in range(ndim)], device=values.device)
    items = torch.arange(batch, device=values.device)[:, None] * math.prod(grid.shape)
    first = (below.long() * strides).sum(-1) + items
    corners = torch.tensor(list(product((0, 1), repeat=ndim)), device=values.device)
    rows = first.unsqueeze(-1) + (corners * strides).sum(-1)  # CUDA has no product of integer matrices
    weights = torch.ones_like(above[..., :1])
    for k in range(ndim):
        weights = weights * torch.where(corners[:, k] == 1, above[..., k : k + 1], 1 - above[..., k : k + 1])
    found = F.embedding_bag(rows.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return found.reshape(batch, -1, values.shape[1]).mT.reshape(batch, values.shape[1], *points.shape[1:-1])


@dataclass(frozen=True, eq=False)
class Anatomies:
    """A batch of anatomies, each a function of the points of its space.

    An anatomy has a body in layers or fills all of space. It is divided into regions; some regions are divided into
    parts, and thin sheets run through it. With a template, the parts are its tissues.

    Args:
        draws: Of the batch.
        grid: Where the noises are sampled; it covers the space in use.
        scale: mm, half the size of an image; what is drawn is relative to it.
        tissues: Tissues of a template, ``(1, 1, *shape)`` from 0 for the background to ``PARTS``, and their grid in mm,
            of about the size of an image.
        templates: Share of the anatomies with those tissues.

    Source:
        Random shapes as in Hoffmann et al., SynthMorph, IEEE TMI 2022; the hierarchy is our own.
    """

    draws: Draws
    grid: Grid
    scale: float
    tissues: tuple[Tensor, Grid] | None = None
    templates: float = 0.0

    def __post_init__(self) -> None:
        _ = self._noise, self._parameters  # what is drawn does not depend on what is asked for first

    @cached_property
    def _noise(self) -> Tensor:
        """Noises: regions, parts, sheets, body, texture."""
        draws, cell = self.draws, 2 / 3.2 * LATTICE / 2  # samples in a half image
        coarse = smooth_noise(draws, self.grid, REGIONS, cell * draws.uniform(low=0.12, high=0.5))
        parts = smooth_noise(draws, self.grid, PARTS, cell * draws.uniform(low=0.07, high=0.25))
        sheets = smooth_noise(draws, self.grid, SHEETS, cell * draws.uniform(low=0.1, high=0.3))
        body = smooth_noise(draws, self.grid, 1, cell * draws.uniform(low=0.15, high=0.5))
        texture = smooth_noise(draws, self.grid, 1, cell * draws.uniform(low=0.05, high=0.15))
        return torch.cat([coarse, parts, sheets, body, texture], dim=1)

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        draws, ndim = self.draws, self.grid.ndim
        every = torch.arange(REGIONS, device=draws.device)
        parts = torch.arange(PARTS, device=draws.device)
        found = {
            "regions": every < draws.uniform(1, low=1, high=REGIONS + 1).floor(),
            "parts": parts < draws.uniform(1, low=1, high=PARTS + 1).floor(),
            "divided": draws.uniform(REGIONS) < draws.uniform(1),
            "width": draws.uniform(SHEETS, low=-0.08, high=0.12),
            "bounded": draws.chance(0.8),
            "radii": draws.uniform(1, low=0.5, high=1.0) * draws.uniform(ndim, low=0.75, high=1.25),
            "rough": draws.uniform(low=0.0, high=0.2),
            "layers": draws.uniform(SHELLS, low=-0.06, high=0.1).clamp(min=0).cumsum(1),
            "template": draws.chance(self.templates),
            "size": draws.uniform(low=0.8, high=1.25),
            "naked": draws.chance(0.6),
        }
        found["divided"] = found["divided"] | found["template"][:, None]
        return found

    @property
    def is_template(self) -> Tensor:
        """``(B,)``, which anatomies have the tissues of the template."""
        return self._parameters["template"]

    def at(self, points: PointTensor) -> tuple[Int[Tensor, "B 1 *P"], Float[Tensor, "B 1 *P"]]:
        """Return the segment, from 0 for the background to ``SEGMENTS - 1``, and the texture at points in mm."""
        ndim, p = self.grid.ndim, self._parameters
        noise = gathered(self._noise, self.grid, points)
        regions, parts, sheets, body, texture = noise.split([REGIONS, PARTS, SHEETS, 1, 1], dim=1)
        # The indices of `max`: `argmax` takes four times as long on a CPU.
        region = regions.masked_fill(~each(p["regions"], ndim), -1e9).max(1, keepdim=True).indices
        part = parts.masked_fill(~each(p["parts"], ndim), -1e9).max(1, keepdim=True).indices
        inside, depth = self._body(points, body)
        if self.tissues is not None and bool(p["template"].any()):
            found = self._tissues(points)
            template = each(p["template"][:, None], ndim)
            part = torch.where(template, (found - 1).clamp(min=0), part)
            inside = torch.where(template, found > 0, inside)
            depth = torch.where(template, torch.inf, depth)
            sheets = sheets.masked_fill(template, torch.inf)
        divided = p["divided"].gather(1, region.flatten(1)).reshape(region.shape)
        segment = 1 + region * PARTS + part * divided
        for k in range(SHEETS):
            segment = torch.where(sheets[:, k : k + 1].abs() < each(p["width"][:, k : k + 1], ndim), SHEET + k, segment)
        for k in reversed(range(SHELLS)):
            segment = torch.where(depth < each(p["layers"][:, k : k + 1], ndim), SHELL + k, segment)
        return segment * inside, texture

    def _body(self, points: PointTensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the body is, and the depth below its surface, relative to the size of an image."""
        ndim, p = self.grid.ndim, self._parameters
        radii = p["radii"].reshape(-1, *[1] * ndim, ndim)
        distance = (points / (self.scale * radii)).norm(dim=-1).unsqueeze(1)
        depth = 0.8 * (1 - distance) + each(p["rough"][:, None], ndim) * noise
        depth = torch.where(each(p["bounded"][:, None], ndim), depth, torch.inf)
        return depth > 0, depth

    def _tissues(self, points: PointTensor) -> Tensor:
        """Return the tissue at points; the head around a brain is left out of some."""
        assert self.tissues is not None  # noqa: S101 - the caller has checked it
        values, grid = self.tissues
        size = self._parameters["size"].reshape(-1, *[1] * (self.grid.ndim + 1))
        found = sample(values, grid, points / size, mode="nearest").round().long()
        naked = each(self._parameters["naked"][:, None], self.grid.ndim)
        return torch.where(naked & (found > BRAIN), 0, found)


BRAIN = 3  # tissues up to it are inside of the skull: gray matter, white matter, fluid
