"""Corresponding points in both images, and the map that they determine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import CONVOLUTIONS, check_architecture, run_blocks, strided_encoder
from learnreg.transforms import Transform, linear_through_landmarks, spline_through_landmarks
from learnreg.transforms.affine import LinearKind
from learnreg.typing import PointTensor

Alignment = Literal["translation", "rigid", "similarity", "affine", "thin-plate"]


class KeypointNetwork(Network):
    """Finds the same points in each image by itself; they determine the map in closed form.

    Each point is the center of mass of a heat map. Since an image is looked at alone, any rotation of it
    that the encoder follows is followed exactly by the map, and the points can be looked at. Trained without
    marked points, through the map, on whatever the objective is.

    Args:
        ndim: 2 or 3.
        channels: Width at 1/2, 1/4, 1/8, ... of the resolution.
        keypoints: How many.
        in_channels: Channels of one image.
        alignment: ``"translation"``, ``"rigid"``, ``"similarity"``, ``"affine"`` or ``"thin-plate"``.
        smoothing: Of the thin-plate spline, relative to the square of the extent; 0 meets the points.

    Raises:
        ValueError: Another number of axes, no widths, an unknown alignment, or too few points.

    Source:
        Yu et al., KeyMorph, MIDL 2022; Wang et al., A robust and interpretable deep learning framework for
        multi-modal registration via keypoints, Med. Image Anal. 2023.
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (16, 32, 64),
        *,
        keypoints: int = 64,
        in_channels: int = 1,
        alignment: Alignment = "affine",
        smoothing: float = 0.01,
    ) -> None:
        super().__init__()
        widths = check_architecture("KeypointNetwork", ndim, channels)
        if alignment not in get_args(Alignment):
            raise InputError(f"A keypoint network aligns by {', '.join(get_args(Alignment))}, not by {alignment!r}.")
        if keypoints <= ndim + 1:
            raise InputError(f"A keypoint network needs at least {ndim + 2} points in {ndim}-D, got {keypoints}.")
        self.ndim, self.in_channels = ndim, in_channels
        self.alignment, self.smoothing = alignment, float(smoothing)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.head = CONVOLUTIONS[ndim](widths[-1], keypoints, 1)
        nn.init.normal_(self.head.weight, std=0.5)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        self.check(fixed, moving)
        both = self.points(torch.cat([fixed.data, moving.data]), fixed.grid)
        source, target = both.chunk(2)
        if self.alignment == "thin-plate":
            scale = float(fixed.grid.extent.square().sum(-1).mean())
            return spline_through_landmarks(source, target, smoothing=self.smoothing * scale)
        kind: LinearKind = self.alignment
        return linear_through_landmarks(source, target, kind)

    def points(self, images: Tensor, grid: Grid) -> PointTensor:
        """``(B, K, D)`` mm, the keypoints of images ``(B, C, *grid.shape)`` by themselves."""
        heat = self.head(run_blocks(self.encoder, images)[-1])
        with torch.autocast(heat.device.type, enabled=False):
            weights = heat.to(grid.dtype).flatten(2).softmax(-1)
            where = grid.resized(tuple(heat.shape[2:])).points.flatten(1, -2)
            return weights @ where.to(weights)
