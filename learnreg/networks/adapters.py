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
    """Use a module that maps a stack of both images to a field as a network; its output is in voxels.

    Args:
        module: ``(B, 2 C, *grid)``, fixed before moving, to ``(B, D, *shape)``; ``shape`` may be coarser. MONAI's
            networks with ``out_channels=spatial_dims`` have this form.
        ndim: 2 or 3.
        in_channels: Channels of one image.
        multiple: The images are padded to multiples of it.
        diffeomorphic: If ``True``, the field is a velocity, else a displacement.
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
        """Predict the transform of a pair; see :meth:`Network.forward`.

        Raises:
            InputError: The module does not return a field.
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
    """Use a module ``(fixed, moving) -> Transform`` as a network.

    It takes 3-D images with one channel, unless the module has the attributes ``ndim`` and ``in_channels``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.ndim, self.in_channels = (int(getattr(module, key, usual)) for key, usual in USUAL.items())

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        transform: Transform = self.module(fixed, moving)
        return transform


def as_network(module: nn.Module) -> Network:
    """Return a module as a :class:`Network`.

    A network is returned as it is. A module that takes a pair becomes a :class:`PairNetwork`, one that takes a tensor a
    :class:`FieldNetwork`.

    Raises:
        InputError: The module takes a tensor, and has no convolution that shows its number of channels.

    Example:
        >>> type(as_network(torch.nn.Conv3d(2, 3, 3, padding=1))).__name__
        'FieldNetwork'
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
