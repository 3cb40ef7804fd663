"""Networks for rigid and affine maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.blocks import check_architecture, run_blocks, start_near_zero, strided_encoder
from learnreg.transforms import Affine
from learnreg.transforms.affine import LinearKind, linear_basis


class AffineNetwork(Network):
    """Network for a translation, rigid motion, similarity or affine map about the center of the field of view.

    The mean and the first moments of each feature over the image determine the parameters, so images can have any size.
    The linear part is a matrix exponential, so it never mirrors and always has an inverse.

    Args:
        ndim: 2 or 3.
        channels: Width at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        kind: ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
        hidden: Width of the layer between the features and the parameters.

    Raises:
        InputError: ``ndim`` or ``kind`` is unknown, or there are no widths.

    Source:
        De Vos et al., A deep learning framework for unsupervised affine and deformable image registration, Med. Image
        Anal. 2019. Differs in: both images in one encoder, moments, the exponential.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> rotation = AffineNetwork(2, (4, 8), kind="rigid")(image, image).matrix[:, :2, :2]
        >>> torch.allclose(rotation @ rotation.mT, torch.eye(2), atol=1e-5)
        True
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (16, 32, 48, 64),
        *,
        in_channels: int = 1,
        kind: LinearKind = "affine",
        hidden: int = 128,
    ) -> None:
        super().__init__()
        widths = check_architecture("AffineNetwork", ndim, channels)
        self.ndim, self.in_channels, self.kind = ndim, in_channels, kind
        self.basis: Tensor
        self.register_buffer("basis", linear_basis(kind, ndim), persistent=False)
        self.encoder = strided_encoder(ndim, 2 * in_channels, widths)
        self.hidden = nn.Sequential(nn.Linear((ndim + 1) * widths[-1], hidden), nn.LeakyReLU(0.2))
        self.head = nn.Linear(hidden, len(self.basis) + ndim)
        start_near_zero(self.head)

    def forward(self, fixed: Image, moving: Image) -> Affine:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        self.check(fixed, moving)
        features = run_blocks(self.encoder, torch.cat([fixed.data, moving.data], dim=1))[-1]
        with torch.autocast(features.device.type, enabled=False):
            found = self.head(self.hidden(moments(features.to(self.head.weight.dtype)))).to(fixed.grid.dtype)
            linear = torch.matrix_exp(torch.einsum("bk,kij->bij", found[:, : -self.ndim], self.basis.to(found)))
            shift = found[:, -self.ndim :] * fixed.grid.extent / 2
        return Affine.about(linear, shift, fixed.grid.center)


def moments(features: Tensor) -> Tensor:
    """Compute the mean and the first moments of each channel.

    A first moment is the mean of the channel times the position along an axis, from -1 to 1.

    Args:
        features: ``(B, C, *shape)``.

    Returns:
        ``(B, (D + 1) C)``.
    """
    found = [features.flatten(2).mean(2)]
    for axis in range(2, features.ndim):
        n = features.shape[axis]
        position = torch.linspace(-1, 1, n).to(features) if n > 1 else features.new_zeros(1)
        along = features.mean([a for a in range(2, features.ndim) if a != axis])
        found.append((along * position).mean(2))
    return torch.cat(found, dim=1)
