"""U-Net: two images in, one field out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import Decoder, FieldHead, check_architecture, run_blocks, strided_encoder
from learnreg.networks.units import Output, as_transform, check_output, pad_to_multiple
from learnreg.transforms import Transform


class UNet(Network):
    """U-Net that predicts a velocity, a displacement, or the control points of a B-spline.

    By default, the first convolution has a stride of 2 and the decoder stops at half resolution. A U-Net spends most of
    its time at full resolution, and a smooth field loses nothing when it is sampled at every second voxel. Images can
    have any size.

    Args:
        ndim: 2 or 3.
        channels: Width at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        output: ``"velocity"`` or ``"bspline-velocity"`` for a diffeomorphism, ``"displacement"`` or ``"bspline"``.
        resolution: Spacing of the field or of the control points, in voxels: 1, 2, 4, ..., ``2^len(channels)``.
        steps: Number of squarings of a velocity.

    Raises:
        InputError: An argument is unknown, or no level has the resolution.

    Source:
        Ronneberger et al., U-Net, MICCAI 2015; Balakrishnan et al., VoxelMorph, IEEE TMI 2019; Qiu et al., Learning
        diffeomorphic and modality-invariant registration using B-splines, MIDL 2021. Differs in: strided input, output
        at 1/2, instance norm, two convolutions per level.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> transform = UNet(2, (4, 8))(image, image)
        >>> type(transform).__name__, transform.grid.shape  # a velocity at half resolution
        ('Velocity', (8, 8))
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (32, 64, 96, 128),
        *,
        in_channels: int = 1,
        output: Output = "velocity",
        resolution: int = 2,
        steps: int = 4,
    ) -> None:
        super().__init__()
        widths = check_architecture("UNet", ndim, channels)
        check_output("UNet", output)
        levels = [2**k for k in range(len(widths) + 1)]
        if resolution not in levels:
            raise InputError(
                f"A UNet with {len(widths)} widths can predict a field at every {levels} voxels, got "
                f"resolution={resolution}; choose one of them or give more widths."
            )
        self.ndim, self.output, self.steps, self.in_channels = ndim, output, steps, in_channels
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, 2 * in_channels, widths)
        self.first = levels.index(resolution)
        outputs = [max(16, widths[0] // 2), *widths]
        self.decoder = Decoder(ndim, [2 * in_channels, *widths][self.first :], outputs[self.first : -1])
        self.head = FieldHead(ndim, outputs[self.first])

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        features = [images, *run_blocks(self.encoder, images)]
        voxels = self.head(self.decoder(features[self.first :]))
        return as_transform(voxels, grid, self.output, self.steps)
