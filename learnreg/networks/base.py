"""What networks share: their interface, and the way from voxels to mm."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from learnreg.grid import Grid, linear_map
from learnreg.image import Image
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor


class Network(nn.Module):
    """A module whose ``forward(fixed, moving)`` returns a :class:`Transform`."""

    ndim: int
    in_channels: int

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` lie on one grid, intensities in [0, 1]."""

    def check(self, fixed: Image, moving: Image) -> None:
        """Raise ``ValueError`` unless the pair is what the network takes."""
        for name, image in (("fixed", fixed), ("moving", moving)):
            if image.ndim != self.ndim or image.data.shape[1] != self.in_channels:
                raise ValueError(
                    f"This network takes {self.ndim}-D images of {self.in_channels} channel(s), "
                    f"{name} is {image.ndim}-D with {image.data.shape[1]}; use a network trained for such images."
                )
        if fixed.grid.shape != moving.grid.shape:
            raise ValueError(
                f"A network takes a pair on one grid, got {fixed.grid.shape} and {moving.grid.shape}; "
                "learnreg.register resamples any pair."
            )


def pad_to_multiple(values: Tensor, grid: Grid, multiple: int) -> tuple[Tensor, Grid]:
    """Zeros behind the last samples until each size is a multiple, and the grid that goes with it."""
    missing = [-n % multiple for n in values.shape[2:]]
    if not any(missing):
        return values, grid
    padded = F.pad(values, [p for n in reversed(missing) for p in (0, n)])
    return padded, Grid(tuple(padded.shape[2:]), grid.affine)


def voxels_to_mm(voxels: FieldTensor, grid: Grid) -> tuple[FieldTensor, Grid]:
    """A predicted field in index units of ``grid`` as one in mm.

    Args:
        voxels: ``(B, D, *shape)``, components along the index axes ``(i, j, k)``, in voxels of
            ``grid``; ``shape`` may be coarser than the grid.
        grid: The field of view.

    Returns:
        The field in mm, float32, and the grid of its samples.
    """
    field = linear_map(grid.affine, voxels)
    return field, grid.resized(tuple(voxels.shape[2:]))


def convolution(ndim: int, inputs: int, outputs: int, *, stride: int = 1) -> Convolution:
    """3x3x3 convolution, instance norm, leaky ReLU."""
    act = ("LEAKYRELU", {"negative_slope": 0.2, "inplace": True})
    return Convolution(
        ndim, inputs, outputs, strides=stride, kernel_size=3, norm="INSTANCE", act=act, adn_ordering="NA"
    )


def field_head(ndim: int, inputs: int) -> Convolution:
    """Convolution to a vector field, close to zero at the start of a training."""
    head = Convolution(ndim, inputs, ndim, conv_only=True)
    nn.init.normal_(head.conv.weight, std=1e-4)
    nn.init.zeros_(head.conv.bias)
    return head
