"""U-Net: two images in, one smooth field out, without a convolution at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.image import Image
from learnreg.networks.base import Network, convolution, field_head, pad_to_multiple, voxels_to_mm
from learnreg.transforms import Displacement, Velocity


class UNet(Network):
    """Predicts a velocity or displacement at half resolution.

    The first convolution strides by 2, the decoder stops there: a field that a regularizer keeps
    smooth loses nothing on every second voxel, and full resolution is where a U-Net spends most of
    its time. Works for any image size.

    Args:
        ndim: 2 or 3.
        channels: Width at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        output: ``"velocity"`` (diffeomorphic) or ``"displacement"``.
        steps: Squarings of a velocity.

    Source:
        Ronneberger et al., U-Net, MICCAI 2015; Balakrishnan et al., VoxelMorph, IEEE TMI 2019.
        Differs in: strided input, output at 1/2, instance norm, two convolutions a level.
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (32, 64, 96, 128),
        *,
        in_channels: int = 1,
        output: Literal["velocity", "displacement"] = "velocity",
        steps: int = 4,
    ) -> None:
        super().__init__()
        if ndim not in (2, 3) or not channels:
            raise ValueError(
                f"UNet needs ndim 2 or 3 and at least one width, got ndim={ndim}, channels={list(channels)}."
            )
        if output not in ("velocity", "displacement"):
            raise ValueError(f"UNet output is velocity or displacement, got {output!r}.")
        self.ndim, self.output, self.steps, self.in_channels = ndim, output, steps, in_channels
        widths = [int(c) for c in channels]
        self.stride = 2 ** len(widths)
        inputs = [2 * in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, i, o, stride=2), convolution(ndim, o, o))
            for i, o in zip(inputs, widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, below + skip, skip), convolution(ndim, skip, skip))
            for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = field_head(ndim, widths[0])

    def forward(self, fixed: Image, moving: Image) -> Velocity | Displacement:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        features: list[Tensor] = []
        x = images
        for block in self.encoder:
            x = block(x)
            features.append(x)
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        field, control = voxels_to_mm(self.head(x), grid)
        return Velocity(field, control, self.steps) if self.output == "velocity" else Displacement(field, control)
