"""Use any `nn.Module` as a registration network."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.base import Network
from learnreg.networks.units import Output, as_transform, pad_to_multiple
from learnreg.transforms import Transform

USUAL = {"ndim": 3, "in_channels": 1}


class FieldNetwork(Network):
    """Any module from a stack of both images to a field, as a network: its output is taken in voxels.

    Args:
        module: ``(B, 2 C, *grid)``, fixed before moving, to ``(B, D, *shape)``; ``shape`` may be coarser. MONAI's
            networks with ``out_channels=spatial_dims`` are such.
        ndim: 2 or 3.
        in_channels: Channels of one image.
        multiple: The images are padded to multiples of it.
        diffeomorphic: The field is a velocity, else a displacement.
        steps: Squarings of a velocity.
    """

    def __init__(
        self,
        module: nn.Module,
        ndim: int = 3,
        *,
        in_channels: int = 1,
        multiple: int = 32,
        diffeomorphic: bool = True,
        steps: int = 4,
    ) -> None:
        super().__init__()
        self.module = module
        self.ndim, self.in_channels, self.stride = ndim, in_channels, multiple
        self.diffeomorphic, self.steps = diffeomorphic, steps

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1].

        Raises:
            ValueError: The module returns something else than a field.
        """
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data], dim=1), fixed.grid, self.stride)
        voxels = self.module(images)
        voxels = voxels[0] if isinstance(voxels, (tuple, list)) else voxels
        if voxels.ndim != images.ndim or voxels.shape[1] != self.ndim:
            raise InputError(
                f"{type(self.module).__name__} returned {tuple(voxels.shape)}, a field is (B, {self.ndim}, ...); "
                f"give it {self.ndim} output channels."
            )
        output: Output = "velocity" if self.diffeomorphic else "displacement"
        return as_transform(voxels.to(grid.dtype), grid, output, self.steps)


class PairNetwork(Network):
    """Any module ``(fixed, moving) -> Transform`` as a network; of 3-D images with one channel unless it says so."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.ndim, self.in_channels = (int(getattr(module, key, usual)) for key, usual in USUAL.items())

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        transform: Transform = self.module(fixed, moving)
        return transform


def as_network(module: nn.Module) -> Network:
    """A network as it is; a module that takes a pair as a :class:`PairNetwork`, one tensor as a :class:`FieldNetwork`.

    Raises:
        ValueError: The module takes one tensor and has no convolution that would tell of what channels.
    """
    if isinstance(module, Network):
        return module
    parameters = inspect.signature(module.forward).parameters.values()
    if sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) > 1:
        return PairNetwork(module)
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    if first is None:
        raise InputError(
            f"{type(module).__name__} has no convolution that tells what it takes; derive it from "
            "learnreg.networks.Network, or put it into a learnreg.networks.FieldNetwork."
        )
    ndim = 2 if isinstance(first, nn.Conv2d) else 3
    return FieldNetwork(module, ndim, in_channels=max(1, first.in_channels // 2))
