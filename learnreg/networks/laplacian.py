"""Laplacian pyramid: one network per resolution, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.fields import exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import FieldHead, check_architecture, convolution
from learnreg.networks.units import pad_to_multiple, per_spacing, voxels_to_mm
from learnreg.sampling import resize
from learnreg.transforms import Displacement, Velocity
from learnreg.typing import FieldTensor
from learnreg.warping import warp


class LaplacianPyramid(Network):
    """One network per resolution: each gets the moving image warped by the coarser ones, and adds a velocity.

    By default, the resolutions are 1/4, 1/2 and 1. Train from coarse to fine: only the first :attr:`levels` networks
    take part, and :class:`learnreg.training.Progressive` increases this number during the training.

    Args:
        ndim: 2 or 3.
        channels: Width of each network, coarse to fine.
        blocks: Residual blocks per network.
        in_channels: Channels of one image.
        steps: Number of squarings of the velocity.

    Attributes:
        levels: Number of networks that take part.

    Raises:
        InputError: ``ndim`` is not 2 or 3, or there are no widths.

    Source:
        Mok and Chung, Large deformation diffeomorphic image registration with Laplacian pyramid networks, MICCAI 2020.
        Differs in: a network does not get the features of the coarser ones, and its field has half its resolution.

    Example:
        >>> network = LaplacianPyramid(2, (4, 4, 4))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> network(image, image).grid.shape
        (8, 8)
        >>> network.levels = 1  # only the coarsest network
        >>> network(image, image).grid.shape
        (2, 2)
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (32, 32, 16),
        *,
        blocks: int = 3,
        in_channels: int = 1,
        steps: int = 4,
    ) -> None:
        super().__init__()
        widths = check_architecture("LaplacianPyramid", ndim, channels)
        self.ndim, self.in_channels, self.steps = ndim, in_channels, steps
        self.stride = 2 ** len(widths)
        self.networks = nn.ModuleList(_Level(ndim, 2 * in_channels + ndim, width, blocks) for width in widths)
        self.levels = len(widths)

    def get_extra_state(self) -> Tensor:
        """Return the number of levels that take part; a checkpoint stores it, so that it predicts as validated."""
        return torch.tensor(self.levels)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the number of levels that take part.

        Raises:
            InputError: The network does not have as many.
        """
        if not 1 <= int(state) <= self.stages:
            raise InputError(f"LaplacianPyramid.levels must be from 1 to {self.stages}, got {int(state)}.")
        self.levels = int(state)

    @property
    def stages(self) -> int:
        """Total number of levels."""
        return len(self.networks)

    def forward(self, fixed: Image, moving: Image) -> Velocity:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        velocity: FieldTensor | None = None
        for level, network in enumerate(self.networks[: self.levels]):
            scale = 2 ** (len(self.networks) - 1 - level)
            own = grid.resized([n // scale for n in grid.shape])
            target, source = resize(images, own.shape).split(self.in_channels, dim=1)
            velocity = self._corrected(velocity, network, Image(target, own), Image(source, own), scale, grid)
        assert velocity is not None  # noqa: S101 - there is at least one level
        return Velocity(velocity, grid.resized(tuple(velocity.shape[2:])), self.steps)

    def _corrected(
        self, velocity: FieldTensor | None, network: nn.Module, fixed: Image, moving: Image, scale: int, grid: Grid
    ) -> Float[Tensor, "B D *half"]:
        """Correct the velocity of the coarser levels by the network of a level.

        Args:
            velocity: Velocity of the coarser levels, mm; ``None`` at the coarsest level.
            network: Network of the level.
            fixed: Fixed image at the level's resolution.
            moving: Moving image at the level's resolution.
            scale: Spacing of the level in voxels of ``grid``.
            grid: Grid of the padded images.

        Returns:
            Velocity in mm, at half the resolution of the level.
        """
        own = fixed.grid
        half = tuple(n // 2 for n in own.shape)
        if velocity is None:
            velocity = moving.data.new_zeros(len(moving.data), self.ndim, *half, dtype=grid.dtype)
            seen = velocity.new_zeros(len(velocity), self.ndim, *own.shape)
        else:
            below = grid.resized(tuple(velocity.shape[2:]))
            moving = warp(moving, Displacement(exponential(velocity, below, steps=self.steps), below), own)
            seen = per_spacing(resize(velocity, own.shape), own)
            velocity = resize(velocity, half)
        # The network predicts in samples of its field, whose spacing is 2 * scale voxels of `grid`.
        found = network(torch.cat([fixed.data, moving.data, seen], dim=1))
        return velocity + voxels_to_mm(found * 2 * scale, grid)[0]


class _Level(nn.Module):
    """Network of one level: a strided convolution, residual blocks, and a field at half resolution."""

    def __init__(self, ndim: int, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = convolution(ndim, inputs, width, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(ndim, width, width), convolution(ndim, width, width)) for _ in range(blocks)
        )
        self.head = FieldHead(ndim, width)

    def forward(self, values: Tensor) -> FieldTensor:
        x = self.first(values)
        for block in self.blocks:
            x = x + block(x)
        field: FieldTensor = self.head(x)
        return field
