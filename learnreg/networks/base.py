"""The interface of a registration network."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.orientation import Orientation
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform


@dataclass(frozen=True, eq=False)
class Task:
    """Pair of images and the objective to train on.

    Args:
        fixed: The reference.
        moving: The image to align.
        objective: Objective of the training for this pair.
        weight: Regularization weight to predict for; ``None`` for networks that take no weight.

    Example:
        >>> from learnreg.networks import UNet
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> task = UNet(2, (4,)).task(image, image, learnreg.Objective(learnreg.similarity.MSE()))
        >>> task.moving is image, task.weight
        (True, None)
    """

    fixed: Image
    moving: Image
    objective: Objective
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of a forward pass of a network.

    Args:
        transform: Points of the fixed space to points of the moving space, mm.
        auxiliary: Intermediate results that :meth:`Network.auxiliary_terms` needs, such as features; its type depends
            on the network. ``None`` for a network without auxiliary terms.

    Example:
        >>> from learnreg.networks import UNet
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> prediction = UNet(2, (4,)).predict(image, image)
        >>> type(prediction.transform).__name__, prediction.auxiliary
        ('Velocity', None)
    """

    transform: Transform
    auxiliary: Any = None


class Network(nn.Module):
    """Module that predicts a transform from a pair of images.

    Derive a class, set :attr:`ndim` and :attr:`in_channels`, and override :meth:`forward`. For training terms of its
    own, a network also overrides :meth:`predict` and :meth:`auxiliary_terms`. The terms get their intermediate results
    from the :class:`Prediction`; the module stores nothing of a pass.

    Attributes:
        ndim: Dimension of the images, 2 or 3.
        in_channels: Channels of one image.
        needs: What every image of a training must have: ``"labels"``, ``"landmarks"``.

    Example:
        >>> class Shift(Network):
        ...     ndim, in_channels = 2, 1
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.vector = torch.nn.Linear(2, 2)
        ...     def forward(self, fixed, moving):
        ...         means = torch.stack([image.data.mean((1, 2, 3)) for image in (fixed, moving)], dim=1)
        ...         return learnreg.Affine.translation(self.vector(means))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> Shift()(image, image).matrix.shape
        torch.Size([1, 3, 3])
    """

    ndim: int
    in_channels: int
    needs: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair.

        Args:
            fixed: The reference, intensities in [0, 1].
            moving: The image to align, on the same grid, intensities in [0, 1].

        Returns:
            Points of the fixed space to points of the moving space, mm.

        Raises:
            InputError: The images differ from the network in dimension, channels or type, or have different grids.
        """

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        """Predict the transform of a pair, and keep what the auxiliary terms of this network need.

        Args:
            fixed: See :meth:`forward`.
            moving: See :meth:`forward`.
            weight: Regularization weight, for networks that take one; ``None`` is the network's default.

        Returns:
            The transform, and the intermediate results for :meth:`auxiliary_terms`.

        Raises:
            InputError: The network takes no weight, or ``weight`` is out of its range; see also :meth:`forward`.
        """
        self.check_weight(weight)
        return Prediction(self(fixed, moving))

    def task(self, fixed: Image, moving: Image, objective: Objective) -> Task:
        """Return the pair and the objective to train on; by default the given ones.

        Override it for a network that replaces an image, such as a template, or that changes the objective.

        Args:
            fixed: The reference.
            moving: The image to align.
            objective: Objective of the training.
        """
        return Task(fixed, moving, objective)

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the terms that a training adds to the objective; by default none.

        Args:
            prediction: Result of :meth:`predict` for the pair.
            fixed: The reference, with the channels that the objective compares.
            moving: The image to align, with the channels that the objective compares.
            objective: Objective of the training.

        Returns:
            Values and their weights, by name.

        Raises:
            InputError: The images lack what a term needs, such as labels.
        """
        return {}

    @property
    def has_auxiliary_terms(self) -> bool:
        """Whether :meth:`auxiliary_terms` can return terms; by default, whether it is overridden."""
        return type(self).auxiliary_terms is not Network.auxiliary_terms

    @property
    def recognizes_orientation(self) -> bool:
        """Whether a pair is turned by :meth:`orientation` before :meth:`predict`; by default not."""
        return False

    def orientation(self, fixed: Image, moving: Image) -> Orientation:
        """Return how to turn both images to the orientation of the training.

        Args:
            fixed: One image, intensities in [0, 1], on a grid of the network.
            moving: One image, intensities in [0, 1], on a grid of the network, its own.
        """
        return Orientation.every(self.ndim)[0]

    def check_weight(self, weight: float | None) -> None:
        """Raise ``InputError`` if the network does not take this regularization weight."""
        if weight is not None:
            raise InputError(
                f"This network, a {type(self).__name__}, takes no weight, got {weight}; use weight=None, or train a "
                "network that takes one (network=conditioned)."
            )

    def check(self, fixed: Image, moving: Image) -> None:
        """Raise ``InputError`` if the network does not accept the dimension, channels, type or grids of a pair."""
        weights = next((p.dtype for p in self.parameters()), None)
        for name, image in (("fixed", fixed), ("moving", moving)):
            if image.ndim != self.ndim or image.data.shape[1] != self.in_channels:
                raise InputError(
                    f"This network takes {self.ndim}-D images of {self.in_channels} channel(s), "
                    f"{name} is {image.ndim}-D with {image.data.shape[1]}; give images that fit, or train a network "
                    f"with ndim={image.ndim} and in_channels={image.data.shape[1]}."
                )
            if weights not in (None, image.data.dtype) and not torch.is_autocast_enabled(image.data.device.type):
                raise InputError(
                    f"The weights of this network are in {weights}, {name} is in {image.data.dtype}; use "
                    f"image.to({weights}), and torch.autocast for half precision."
                )
        if fixed.grid.shape != moving.grid.shape:
            raise InputError(
                f"A network needs both images on one grid, got the shapes {fixed.grid.shape} and {moving.grid.shape}; "
                "resample them, or use learnreg.register, which does."
            )
