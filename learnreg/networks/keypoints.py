"""Keypoints: corresponding points in both images, and the transform that they determine."""

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
    """Network that detects corresponding keypoints, and fits a transform to them in closed form.

    Each keypoint is the center of mass of a heat map. The encoder gets one image at a time: if its keypoints follow a
    rotation of the image, so does the transform, and the keypoints of an image can be inspected. Training needs no
    annotated keypoints; the objective of the transform is enough.

    Args:
        ndim: 2 or 3.
        channels: Width at 1/2, 1/4, 1/8, ... of the resolution.
        keypoints: Number of keypoints, at least ``ndim + 2``.
        in_channels: Channels of one image.
        alignment: ``"translation"``, ``"rigid"``, ``"similarity"``, ``"affine"`` or ``"thin-plate"``.
        smoothing: Smoothing of the thin-plate spline, as a share of the squared extent of the grid; 0 interpolates the
            keypoints.

    Raises:
        InputError: ``ndim`` or ``alignment`` is unknown, or there are no widths or too few keypoints.

    Source:
        Yu et al., KeyMorph, MIDL 2022; Wang et al., A robust and interpretable deep learning framework for multi-modal
        registration via keypoints, Med. Image Anal. 2023.

    Example:
        >>> network = KeypointNetwork(2, (4,), keypoints=8)
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> network.points(image.data, image.grid).shape
        torch.Size([1, 8, 2])
        >>> bool(network(image, image).displacement(image.grid).abs().max() < 0.01)  # equal images: the identity
        True
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
            raise InputError(f"A keypoint network aligns by {', '.join(get_args(Alignment))}, got {alignment!r}.")
        if keypoints <= ndim + 1:
            raise InputError(f"A keypoint network needs at least {ndim + 2} points in {ndim}-D, got {keypoints}.")
        self.ndim, self.in_channels = ndim, in_channels
        self.alignment, self.smoothing = alignment, float(smoothing)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.head = CONVOLUTIONS[ndim](widths[-1], keypoints, 1)
        nn.init.normal_(self.head.weight, std=0.5)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        source, target = self.points(fixed.data, fixed.grid), self.points(moving.data, moving.grid)
        if self.alignment == "thin-plate":
            scale = fixed.grid.extent.double().square().sum(-1).reshape(-1, 1, 1)  # of each image
            return spline_through_landmarks(source, target, smoothing=self.smoothing * scale)
        kind: LinearKind = self.alignment
        return linear_through_landmarks(source, target, kind)

    def points(self, images: Tensor, grid: Grid) -> PointTensor:
        """Detect the keypoints of images.

        Args:
            images: ``(B, C, *grid.shape)``.
            grid: Grid of the images.

        Returns:
            ``(B, K, D)``, mm.
        """
        heat = self.head(run_blocks(self.encoder, images)[-1])
        with torch.autocast(heat.device.type, enabled=False):
            weights = heat.to(grid.dtype).flatten(2).softmax(-1)
            where = grid.resized(tuple(heat.shape[2:])).points.flatten(1, -2)
            return weights @ where.to(weights)
