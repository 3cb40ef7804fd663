"""A template that is learned together with the network that brings it to each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.image import Image
from learnreg.networks.base import Network, as_network
from learnreg.transforms import Transform
from learnreg.typing import Scalar


class LearnedTemplate(Network):
    """The moving image of every training pair is a template whose voxels are weights.

    It becomes sharp where the network can align the images, and the mean of all deformations is held near zero,
    so that it is a mean in shape, too. A trained one registers its template, or any other moving image.

    Args:
        network: From an image and the template to a transform.
        shape: ``(z, y, x)`` of the template, that of the training images.
        centering: Weight of the squared mean displacement, per mm^2.
        momentum: The mean runs over about ``1 / (1 - momentum)`` steps.

    Raises:
        ValueError: The shape has another number of axes than the network, or the momentum is not in [0, 1).

    Source:
        Dalca et al., Learning conditional deformable templates with convolutional networks, NeurIPS 2019, the
        unconditional one.
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], *, centering: float = 1.0, momentum: float = 0.98
    ) -> None:
        super().__init__()
        network = as_network(network)
        if len(shape) != network.ndim or not 0 <= momentum < 1:
            raise ValueError(
                f"LearnedTemplate needs a shape of {network.ndim} axes and a momentum from 0 to below 1, "
                f"got {list(shape)} and {momentum}."
            )
        self.network = network
        self.ndim, self.in_channels = int(network.ndim), int(network.in_channels)  # type: ignore[arg-type]
        self.centering, self.momentum = float(centering), float(momentum)
        size = tuple(int(n) for n in shape)
        self.values = nn.Parameter(torch.full((1, self.in_channels, *size), 0.5))
        self.seen: Tensor
        self.mean: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(1, self.ndim, *size))

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        transform: Transform = self.network(fixed, moving)
        return transform

    def template(self, like: Image) -> Image:
        """The template on the grid of the training images, as often as ``like`` has images.

        Raises:
            ValueError: The images have another shape.
        """
        if like.grid.shape != tuple(self.values.shape[2:]):
            raise ValueError(
                f"The template has {tuple(self.values.shape[2:])} voxels, the images {like.grid.shape}; set "
                "network.shape to data.space.shape."
            )
        if self.training and not bool(self.seen):  # the first images are where it begins
            with torch.no_grad():
                self.values.copy_(like.data.mean(0, keepdim=True))
            self.seen += 1
        return Image(self.values.expand(like.batch_size, -1, *[-1] * self.ndim), like.grid)

    def centered(self, transform: Transform, fixed: Image) -> Scalar:
        """The penalty of the running mean of the displacements, mm^2 times its weight."""
        now = transform.displacement(fixed.grid).mean(0, keepdim=True)
        mean = self.momentum * self.mean + (1 - self.momentum) * now
        self.mean = mean.detach()
        return self.centering * mean.square().sum(1).mean() / (1 - self.momentum)
