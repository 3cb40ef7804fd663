"""Templates that are learned together with the network that aligns them to each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network, Prediction, Task
from learnreg.networks.blocks import CONVOLUTIONS, convolution, start_near_zero
from learnreg.objective import Objective
from learnreg.sampling import resize
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform


class LearnedTemplate(Network):
    """Network with a template: an image whose voxels are weights, and the moving image of every training pair.

    The template becomes sharp where the network can align it to the training images. A term keeps the mean displacement
    to the images near 0, so that the template also has their mean shape. The first training images initialize the
    template by their mean. A trained network aligns its template or any other moving image.

    Args:
        network: Network that predicts the transform from a training image to the template.
        shape: ``(z, y, x)`` of the template; it must be the shape of the training images.
        centering: Weight of the squared mean displacement, per mm^2.
        momentum: Decay of the running mean of the displacements, over about ``1 / (1 - momentum)`` steps; from 0 to
            below 1.

    Raises:
        InputError: The shape has another dimension than the network, or the momentum is not in [0, 1).

    Source:
        Dalca et al., Learning conditional deformable templates with convolutional networks, NeurIPS 2019, the
        unconditional template.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = LearnedTemplate(UNet(2, (4,)), (16, 16))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> task = network.task(image, image, learnreg.Objective(learnreg.similarity.MSE()))
        >>> torch.equal(task.moving.data, network.values)  # the template replaces the moving image
        True
    """

    def __init__(
        self, network: nn.Module, shape: Sequence[int], *, centering: float = 1.0, momentum: float = 0.98
    ) -> None:
        super().__init__()
        network = as_network(network)
        if len(shape) != network.ndim or not 0 <= momentum < 1:
            raise InputError(
                f"LearnedTemplate needs a shape of {network.ndim} axes and a momentum from 0 to below 1, "
                f"got {list(shape)} and {momentum}."
            )
        self.network = network
        self.ndim, self.in_channels = network.ndim, network.in_channels
        self.centering, self.momentum = float(centering), float(momentum)
        size = tuple(int(n) for n in shape)
        self.values = nn.Parameter(torch.full((1, self.in_channels, *size), 0.5))
        self.seen: Tensor
        self.mean: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(1, self.ndim, *size))
        self.begun = False  # reading `seen` from the device at each step would make the host wait

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        return self.network.predict(fixed, moving, weight=weight)

    def check_weight(self, weight: float | None) -> None:
        self.network.check_weight(weight)

    def task(self, fixed: Image, moving: Image, objective: Objective) -> Task:
        """Return the fixed images with the template as moving image; ``moving`` is ignored."""
        return self.network.task(fixed, self.template(fixed), objective)

    def template(self, like: Image) -> Image:
        """Return the template on the grid of training images, once per image.

        The first call in training initializes the template by the mean of the images.

        Args:
            like: Training images, with their covariates.

        Raises:
            InputError: The images have another shape.
        """
        if like.grid.shape != tuple(self.values.shape[2:]):
            raise InputError(
                f"The template has the shape {tuple(self.values.shape[2:])}, the images have {like.grid.shape}; set "
                "network.shape to data.space.shape."
            )
        if self.training and not self.begun:
            self._begin(like)
        return Image(self.appearance(like.batch_size, like.covariates), like.grid)

    def appearance(self, count: int, covariates: Tensor | None) -> Tensor:
        """Return the intensities of the template, once per subject.

        Args:
            count: Number of subjects.
            covariates: Ignored; see :class:`ConditionalTemplate`.

        Returns:
            ``(count, C, *shape)``.
        """
        return self.values.expand(count, -1, *[-1] * self.ndim)

    def _begin(self, images: Image) -> None:
        """Initialize the template by the mean of the first training images, unless a checkpoint was loaded.

        Several processes take the mean of the images of all of them: they start from different images, and exchange
        gradients only.
        """
        self.begun = True
        if not bool(self.seen):
            with torch.no_grad():
                self.values.copy_(_mean_of_processes(images.data.mean(0, keepdim=True).to(self.values)))
            self.seen += 1

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the squared running mean of the displacements, in mm^2, and the terms of the inner network."""
        own = self.network.auxiliary_terms(prediction, fixed, moving, objective)
        now = prediction.transform.displacement(fixed.grid).mean(0, keepdim=True)
        now = now + (_mean_of_processes(now.detach()) - now.detach())  # each process has the gradient of its own pairs
        mean = self.momentum * self.mean + (1 - self.momentum) * now
        self.mean = mean.detach()
        # Only the newest share, 1 - momentum, of the running mean has a gradient; dividing by it restores the size.
        return {**own, "centering": WeightedValue(mean.square().sum(1).mean() / (1 - self.momentum), self.centering)}


def _mean_of_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes of a distributed training."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class ConditionalTemplate(LearnedTemplate):
    """Learned template that depends on covariates, such as the age.

    A small decoder predicts, from the covariates, an image that is added to a common template.

    Args:
        network: See :class:`LearnedTemplate`.
        shape: See :class:`LearnedTemplate`.
        between: Lowest and highest value of each covariate, in the order of ``data.covariates``.
        width: Channels of the decoder.
        centering: See :class:`LearnedTemplate`.
        momentum: See :class:`LearnedTemplate`.

    Raises:
        InputError: There are no covariates, or a range is invalid; see also :class:`LearnedTemplate`.

    Source:
        Dalca et al., Learning conditional deformable templates with convolutional networks, NeurIPS 2019.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = ConditionalTemplate(UNet(2, (4,)), (16, 16), between=[[20, 80]])
        >>> ages = torch.tensor([[30.0], [50.0], [70.0]])
        >>> network.appearance(3, ages).shape  # a template per age
        torch.Size([3, 1, 16, 16])
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        between: Sequence[Sequence[float]],
        *,
        width: int = 16,
        centering: float = 1.0,
        momentum: float = 0.98,
    ) -> None:
        super().__init__(network, shape, centering=centering, momentum=momentum)
        ranges = [[float(end) for end in ends] for ends in between]
        if not ranges or any(len(ends) != 2 or ends[0] >= ends[1] for ends in ranges):
            raise InputError(
                f"ConditionalTemplate needs between=[[lowest, highest], ...], one range per covariate, got {ranges}."
            )
        self.ranges: Tensor
        self.register_buffer("ranges", torch.tensor(ranges))
        self.coarse = tuple(-(-n // 8) for n in self.values.shape[2:])
        self.embedding = nn.Sequential(nn.Linear(len(ranges), width), nn.LeakyReLU(0.2))
        self.seed = nn.Linear(width, width * math.prod(self.coarse))
        self.blocks = nn.ModuleList(convolution(self.ndim, width, width) for _ in range(3))
        self.head = CONVOLUTIONS[self.ndim](width, self.in_channels, 3, padding=1)
        start_near_zero(self.head)

    def appearance(self, count: int, covariates: Tensor | None) -> Tensor:
        """Compute the intensities of the template for each row of covariates.

        Args:
            count: Number of subjects.
            covariates: ``(count, K)``.

        Returns:
            ``(count, C, *shape)``.

        Raises:
            InputError: The covariates are missing, or have another shape.
        """
        wanted = len(self.ranges)
        if covariates is None or covariates.shape != (count, wanted):
            got = "none" if covariates is None else tuple(covariates.shape)
            raise InputError(
                f"This template depends on {wanted} covariate(s) for each of {count} image(s), got {got}; name the "
                "columns of the data's CSV in data.covariates, or set Image.covariates."
            )
        low, high = self.ranges.unbind(1)
        x = self.embedding(2 * (covariates.to(low) - low) / (high - low) - 1)
        x = self.seed(x).reshape(count, -1, *self.coarse)
        size = self.values.shape[2:]
        for halvings, block in zip((2, 1, 0), self.blocks, strict=True):
            x = block(resize(x, tuple(-(-n // 2**halvings) for n in size)))
        return self.values + self.head(x).to(self.values.dtype)
