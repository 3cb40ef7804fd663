"""Dual-stream pyramid: features of both images, matched from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.fields import channels_last, exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import (
    FieldHead,
    Network,
    check_architecture,
    convolution,
    pad_to_multiple,
    per_spacing,
    run_blocks,
    strided_encoder,
    voxels_to_mm,
)
from learnreg.transforms import Velocity
from learnreg.typing import FieldTensor
from learnreg.warping import resize, sample


class Pyramid(Network):
    """One encoder sees each image by itself; a decoder a level corrects the velocity from below.

    At each level the moving features are warped by the flow of the velocity so far, so that a
    level only has to find what the coarser ones left over; below the finest level it is also told how
    well the features match at each small shift. The result is one stationary velocity at
    half resolution: a diffeomorphism, with its inverse, and a start for instance optimization.

    Args:
        ndim: 2 or 3.
        channels: Features at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        steps: Squarings of the velocity.
        reach: Shifts of so many samples along each axis are matched; 0 matches none.

    Raises:
        ValueError: Another number of axes, no widths, or a negative reach.

    Source:
        The family of Mok and Chung, LapIRN, MICCAI 2020, and Honkamaa and Marttinen, SITReg, MELBA
        2024; the local correlation is that of Sun et al., PWC-Net, CVPR 2018. Differs in: one
        velocity that is corrected, not a composition of several.
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (16, 32, 48, 64),
        *,
        in_channels: int = 1,
        steps: int = 4,
        reach: int = 1,
    ) -> None:
        super().__init__()
        widths = check_architecture("Pyramid", ndim, channels)
        if reach < 0:
            raise ValueError(f"Pyramid needs a reach of at least 0, got {reach}.")
        self.ndim, self.in_channels, self.steps, self.reach = ndim, in_channels, steps, reach
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        matches = [0, *[(2 * reach + 1) ** ndim if reach else 0] * (len(widths) - 1)]
        self.decoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, 2 * w + m + ndim, w), convolution(ndim, w, w))
            for w, m in zip(widths, matches, strict=True)
        )
        self.heads = nn.ModuleList(FieldHead(ndim, w) for w in widths)

    def forward(self, fixed: Image, moving: Image) -> Velocity:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data]), fixed.grid, self.stride)
        features = run_blocks(self.encoder, images)
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
            velocity = fixed.new_zeros(fixed.shape[0], self.ndim, *own.shape, dtype=grid.dtype)
        else:
            below = grid.resized(tuple(velocity.shape[2:]))
            displacement = resize(exponential(velocity, below, steps=self.steps), own.shape)
            velocity = resize(velocity, own.shape)
            moving = sample(moving, own, own.points + channels_last(displacement), padding="border")
        parts = [fixed, moving, per_spacing(velocity, own)]
        if level > 0 and self.reach > 0:
            parts.append(local_correlation(fixed, moving, self.reach))
        decoded = self.decoder[level](torch.cat(parts, dim=1))
        voxels = self.heads[level](decoded) * 2 ** (level + 1)  # of the full resolution
        return velocity + voxels_to_mm(voxels, grid)[0]


def local_correlation(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """``(B, (2 reach + 1)^D, *grid)``: mean over the channels of ``fixed`` times ``moving`` at each shift.

    Beyond the border ``moving`` is 0.
    """
    found: Tensor = _Correlation.apply(fixed, moving, reach)
    return found


class _Correlation(torch.autograd.Function):
    """The products are not kept for the gradient, and no padded gradient is made for each shift."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, reach: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(fixed, moving)
        ctx.reach = reach
        padded = F.pad(moving, [reach] * 2 * (fixed.ndim - 2))
        return torch.stack([(fixed * padded[window]).mean(1) for window in _windows(fixed.shape, reach)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        fixed, moving = ctx.saved_tensors
        padding = [ctx.reach] * 2 * (fixed.ndim - 2)
        padded = F.pad(moving, padding)
        for_fixed, for_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        for window, weight in zip(_windows(fixed.shape, ctx.reach), outer.split(1, dim=1), strict=True):
            for_fixed.addcmul_(padded[window], weight)
            for_padded[window].addcmul_(fixed, weight)
        channels = fixed.shape[1]
        return for_fixed / channels, F.pad(for_padded, [-n for n in padding]) / channels, None


def _windows(shape: torch.Size, reach: int) -> list[tuple[slice, ...]]:
    """Where the grid lies in one that is padded by ``reach``, for each shift."""
    shifts = product(range(2 * reach + 1), repeat=len(shape) - 2)
    return [
        (slice(None), slice(None), *[slice(s, s + n) for s, n in zip(shift, shape[2:], strict=True)])
        for shift in shifts
    ]
