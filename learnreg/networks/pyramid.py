"""Dual-stream pyramid: features of both images, matched from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.fields import channels_last, exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network, convolution, field_head, pad_to_multiple, voxels_to_mm
from learnreg.transforms import Velocity
from learnreg.typing import FieldTensor
from learnreg.warping import resize, sample


class Pyramid(Network):
    """One encoder sees each image by itself; a decoder a level corrects the velocity from below.

    At each level the moving features are warped by the flow of the velocity so far, so that a
    level only has to find what the coarser ones left over. The result is one stationary velocity at
    half resolution: a diffeomorphism, with its inverse, and a start for instance optimization.

    Args:
        ndim: 2 or 3.
        channels: Features at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        steps: Squarings of the velocity.

    Source:
        The family of Mok and Chung, LapIRN, MICCAI 2020, and Honkamaa and Marttinen, SITReg, MELBA
        2024. Differs in: one velocity that is corrected, not a composition of several.
    """

    def __init__(
        self, ndim: int = 3, channels: Sequence[int] = (16, 32, 48, 64), *, in_channels: int = 1, steps: int = 4
    ) -> None:
        super().__init__()
        if ndim not in (2, 3) or not channels:
            raise ValueError(
                f"Pyramid needs ndim 2 or 3 and at least one width, got ndim={ndim}, channels={list(channels)}."
            )
        self.ndim, self.in_channels, self.steps = ndim, in_channels, steps
        widths = [int(c) for c in channels]
        self.stride = 2 ** len(widths)
        self.encoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, i, o, stride=2), convolution(ndim, o, o))
            for i, o in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, 2 * w + ndim, w), convolution(ndim, w, w)) for w in widths
        )
        self.heads = nn.ModuleList(field_head(ndim, w) for w in widths)

    def forward(self, fixed: Image, moving: Image) -> Velocity:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data]), fixed.grid, self.stride)
        features: list[Tensor] = []
        for block in self.encoder:
            images = block(images)
            features.append(images)
        velocity: FieldTensor | None = None
        for level in reversed(range(len(features))):
            velocity = self._corrected(velocity, features[level], level, grid)
        assert velocity is not None  # noqa: S101 - there is at least one level
        return Velocity(velocity, grid.resized(tuple(velocity.shape[2:])), self.steps)

    def _corrected(self, velocity: FieldTensor | None, both: Tensor, level: int, grid: Grid) -> FieldTensor:
        """The velocity in mm at a level's resolution, from that of the level below."""
        fixed, moving = both.chunk(2)
        own = grid.resized(tuple(both.shape[2:]))
        if velocity is None:
            velocity = fixed.new_zeros(fixed.shape[0], self.ndim, *own.shape)
        else:
            velocity = resize(velocity, own.shape)
            displacement = exponential(velocity, own, steps=self.steps)
            moving = sample(moving, own, own.points + channels_last(displacement), padding="border")
        scale = own.spacing.reshape(-1, self.ndim, *([1] * self.ndim))
        decoded = self.decoder[level](torch.cat([fixed, moving, velocity / scale], dim=1))
        voxels = self.heads[level](decoded) * 2 ** (level + 1)  # of the full resolution
        return velocity + voxels_to_mm(voxels, grid)[0]
