"""Networks one after the other, trained together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from learnreg.image import Image
from learnreg.networks.base import Network, as_network
from learnreg.transforms import Transform, chain
from learnreg.warping import warp


class Cascade(Network):
    """Each network sees the moving image as those before it have placed it; the answers are composed.

    An affine network and a deformable one are the usual pair; the gradient passes through all of them, and
    the composition moves the original image once.

    Args:
        networks: At least one, for images of one kind.

    Raises:
        ValueError: There is none, or they take different images.

    Source:
        De Vos et al., Med. Image Anal. 2019; Zhao et al., Recursive cascaded networks, ICCV 2019.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        parts = [as_network(network) for network in networks]
        if len({(network.ndim, network.in_channels) for network in parts}) != 1:
            raise ValueError("A cascade needs networks that take the same images, at least one.")
        self.networks = nn.ModuleList(parts)
        self.ndim, self.in_channels = int(parts[0].ndim), int(parts[0].in_channels)  # type: ignore[arg-type]

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        total: Transform | None = None
        for network in self.networks:
            seen = moving if total is None else warp(Image(moving.data, moving.grid), total, fixed.grid)
            total = chain(network(fixed, Image(seen.data, seen.grid)), total)
        assert total is not None  # noqa: S101 - there is at least one
        return total
