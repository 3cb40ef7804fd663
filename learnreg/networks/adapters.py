"""Adapters: use any ``nn.Module`` as a registration network."""

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
    """Network around a module that predicts a field from the stacked images.

    Args:
        module: Maps ``(B, 2 C, *grid)``, the fixed before the moving channels, to ``(B, D, *shape)``, in voxels of the
            padded images; ``shape`` can be coarser. If it returns several outputs, the first is used. MONAI's networks
            with ``out_channels=spatial_dims`` have this form.
        ndim: 2 or 3.
        in_channels: Channels of one image.
        multiple: Pad the images to multiples of this size.
        diffeomorphic: If ``True``, the field is a velocity. If ``False``, it is a displacement.
        steps: Number of squarings of a velocity.

    Example:
        >>> network = FieldNetwork(torch.nn.Conv2d(2, 2, 3, padding=1), ndim=2)
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> type(network(image, image)).__name__
        'Velocity'
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
                f"{type(self.module).__name__} must return a field (B, {self.ndim}, ...) with {images.ndim} axes, got "
                f"{tuple(voxels.shape)}; give it {self.ndim} output channels."
            )
        output: Output = "velocity" if self.diffeomorphic else "displacement"
        return as_transform(voxels.to(grid.dtype), grid, output, self.steps)


class PairNetwork(Network):
    """Network around a module ``(fixed, moving) -> Transform``.

    Args:
        module: Its attributes ``ndim`` and ``in_channels`` say which images it takes; without them, 3-D images with one
            channel.
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
    """Convert a module to a :class:`Network`.

    Args:
        module: A network is returned as it is. A module with two required arguments or more becomes a
            :class:`PairNetwork`. Any other module becomes a :class:`FieldNetwork`, with the dimension and the channels
            of its first convolution.

    Raises:
        InputError: The module takes one argument, and has no 2-D or 3-D convolution.

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
            f"{type(module).__name__} has no convolution that shows its dimension and channels; derive it from "
            "learnreg.networks.Network, or wrap it in a learnreg.networks.FieldNetwork."
        )
    ndim = 2 if isinstance(first, nn.Conv2d) else 3
    return FieldNetwork(module, ndim, in_channels=max(1, first.in_channels // 2))
