"""Building blocks of networks: convolutions, an encoder, a decoder, and a head that predicts a field."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.typing import FieldTensor

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def convolution(ndim: int, inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Return a convolution with a kernel of 3 samples per axis, followed by instance norm and leaky ReLU.

    It is MONAI's ``Convolution(..., norm="INSTANCE", act="LEAKYRELU", adn_ordering="NA")``, with the names of its
    layers, without the time to import MONAI.
    """
    conv = CONVOLUTIONS[ndim](inputs, outputs, 3, stride, padding=1)
    layers = OrderedDict(N=NORMS[ndim](outputs), A=nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(OrderedDict(conv=conv, adn=nn.Sequential(layers)))


def strided_encoder(ndim: int, inputs: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return blocks of two convolutions; each block halves the resolution.

    Args:
        ndim: 2 or 3.
        inputs: Channels of the input.
        widths: Channels of the output of each block, fine to coarse.
    """
    return nn.ModuleList(
        nn.Sequential(convolution(ndim, i, o, stride=2), convolution(ndim, o, o))
        for i, o in zip([inputs, *widths[:-1]], widths, strict=True)
    )


def run_blocks(blocks: Iterable[nn.Module], values: Tensor) -> list[Tensor]:
    """Run blocks in order, and return the output of each."""
    found = []
    for block in blocks:
        values = block(values)
        found.append(values)
    return found


class Decoder(nn.Module):
    """U-Net decoder: at each level, upsampled features are concatenated with the features of the encoder.

    Args:
        ndim: 2 or 3.
        skips: Channels of the encoder's features, fine to coarse.
        outputs: Channels of the output of each level, fine to coarse; one fewer than ``skips``, since decoding starts
            from the coarsest features.
    """

    def __init__(self, ndim: int, skips: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        below = [*outputs, skips[-1]][1:]
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(ndim, low + skip, out), convolution(ndim, out, out))
            for low, skip, out in reversed(list(zip(below, skips[:-1], outputs, strict=True)))
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode features.

        Args:
            features: ``(B, C, *shape)`` per level, fine to coarse.

        Returns:
            ``(B, outputs[0], *shape)``, with the shape of the first features.
        """
        x = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        return x


class FeaturePyramid(nn.Module):
    """Feature pyramid: from coarse to fine, each level gets the projected features of the coarser level added."""

    def __init__(self, ndim: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.projections = nn.ModuleList(CONVOLUTIONS[ndim](below, own, 1) for own, below in pairs)
        self.blocks = nn.ModuleList(convolution(ndim, own, own) for own, _ in pairs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return features of the same shapes as ``features``, ``(B, C, *shape)`` per level, fine to coarse."""
        found = [features[-1]]
        for own, project, block in reversed(list(zip(features[:-1], self.projections, self.blocks, strict=True))):
            below = F.interpolate(project(found[-1]), size=own.shape[2:], mode="nearest")
            found.append(block(own + below))
        return found[::-1]


def check_architecture(name: str, ndim: int, channels: Sequence[int]) -> list[int]:
    """Check the dimension and the widths of a network, and return the widths as integers.

    Args:
        name: Name of the network, for the error message.
        ndim: Dimension of the images.
        channels: Widths, at least one.

    Raises:
        InputError: ``ndim`` is not 2 or 3, or there are no widths.
    """
    if ndim not in (2, 3) or not channels:
        raise InputError(
            f"{name} needs ndim 2 or 3 and at least one width in channels, got ndim={ndim} and "
            f"channels={list(channels)}."
        )
    return [int(c) for c in channels]


def start_near_zero(layer: nn.Linear | nn.Conv2d | nn.Conv3d, std: float = 1e-4) -> None:
    """Initialize a layer so that its output is close to 0 at the start of a training.

    A network that predicts a transform then starts close to the identity.
    """
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FieldHead(nn.Module):
    """Convolution to a vector field.

    The field is close to 0 at the start of a training. It is computed in float32 also under autocast, because
    coordinates in half precision are too coarse.

    Args:
        ndim: 2 or 3.
        inputs: Channels of the features.
    """

    def __init__(self, ndim: int, inputs: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[ndim](inputs, ndim, 3, padding=1)
        start_near_zero(self.conv)

    def forward(self, features: Tensor) -> FieldTensor:
        """Map features ``(B, C, *shape)`` to a field ``(B, D, *shape)``."""
        with torch.autocast(features.device.type, enabled=False):
            field: Tensor = self.conv(features.to(self.conv.weight.dtype))
            return field
