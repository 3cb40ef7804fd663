"""Networks with a Swin transformer as encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.swin_unetr import SwinTransformer

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import Decoder, FieldHead
from learnreg.networks.units import Output, as_transform, check_output, pad_to_multiple
from learnreg.transforms import Transform

LEVELS = 4


class SwinNetwork(Network):
    """Network with a Swin transformer as encoder and a convolutional decoder.

    Args:
        ndim: 2 or 3.
        width: Channels at half resolution; they double at each level. Must be a multiple of ``heads[0]``.
        depths: Number of attention blocks at 1/2, 1/4, 1/8 and 1/16 of the resolution.
        heads: Number of attention heads at the same four levels.
        window: Side of an attention window, in samples.
        in_channels: Channels of one image.
        output: See :class:`UNet`.
        steps: Number of squarings of a velocity.

    Raises:
        InputError: ``ndim`` or ``output`` is unknown, or ``depths`` or ``heads`` does not have four entries.

    Source:
        Liu et al., Swin transformer, ICCV 2021; Chen et al., TransMorph, Med. Image Anal. 2022. Differs in: MONAI's
        blocks, patches of 2, a field at half resolution.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> SwinNetwork(2, 6, depths=(1, 1, 1, 1))(image, image).displacement(image.grid).shape
        torch.Size([1, 2, 16, 16])
    """

    def __init__(
        self,
        ndim: int = 3,
        width: int = 24,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        *,
        window: int = 4,
        in_channels: int = 1,
        output: Output = "velocity",
        steps: int = 4,
    ) -> None:
        super().__init__()
        check_output("SwinNetwork", output)
        if ndim not in (2, 3) or len(depths) != LEVELS or len(heads) != LEVELS:
            raise InputError(
                f"SwinNetwork needs ndim 2 or 3 and {LEVELS} depths and heads, got ndim={ndim}, "
                f"depths={list(depths)}, heads={list(heads)}."
            )
        self.ndim, self.in_channels, self.output, self.steps = ndim, in_channels, output, steps
        self.stride = 2 ** (LEVELS + 1)
        self.encoder = SwinTransformer(
            2 * in_channels,
            embed_dim=width,
            window_size=[window] * ndim,
            patch_size=[2] * ndim,
            depths=list(depths),
            num_heads=list(heads),
            spatial_dims=ndim,
        )
        widths = [width * 2**k for k in range(LEVELS + 1)]
        self.decoder = Decoder(ndim, widths, widths[:-1])
        self.head = FieldHead(ndim, width)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        features = self.encoder(images)
        return as_transform(self.head(self.decoder(features)), grid, self.output, self.steps)
