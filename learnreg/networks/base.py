"""The interface of a registration network."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform


@dataclass(frozen=True, eq=False)
class Task:
    """A pair, and what the transform of the pair is scored with.

    Args:
        fixed: The reference.
        moving: The image to align.
        objective: What a training minimizes for this pair.
        weight: Regularization weight to predict for; ``None`` for networks without one.
    """

    fixed: Image
    moving: Image
    objective: Objective
    weight: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Answer of a network for one batch of pairs.

    Args:
        transform: Points of the fixed space to points of the moving space.
        auxiliary: What :meth:`Network.auxiliary_terms` needs of the pass, such as features; each network has its own
            type. ``None`` outside of a training.
    """

    transform: Transform
    auxiliary: Any = None


class Network(nn.Module):
    """Module that predicts a transform from a pair of images.

    Override :meth:`forward`. A network with training terms of its own overrides :meth:`predict` and
    :meth:`auxiliary_terms`: a prediction carries what its terms need, the module keeps nothing of a pass.
    """

    ndim: int
    in_channels: int

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict the transform of a pair.

        Args:
            fixed: The reference, intensities in [0, 1].
            moving: The image to align, on the same grid, intensities in [0, 1].

        Returns:
            Points of the fixed space to points of the moving space, mm.

        Raises:
            InputError: The images have another dimension or number of channels than the network takes.
        """

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        """Predict the transform of a pair, with what the training terms of this network need.

        Args:
            fixed: See :meth:`forward`.
            moving: See :meth:`forward`.
            weight: Regularization weight, for networks that take one; ``None`` is the network's default.

        Raises:
            InputError: ``weight`` is given to a network that takes none, or is out of its range.
        """
        self.check_weight(weight)
        return Prediction(self(fixed, moving))

    def task(self, fixed: Image, moving: Image, objective: Objective) -> Task:
        """Return what this network trains on and is scored by; by default the pair and the objective as given.

        Args:
            fixed: The reference.
            moving: The image to align.
            objective: Of the training.
        """
        return Task(fixed, moving, objective)

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute what a training minimizes beside the objective; by default nothing.

        Args:
            prediction: What :meth:`predict` returned for the pair.
            fixed: The reference, as the objective compares it.
            moving: The image to align, as the objective compares it.
            objective: Of the training.

        Returns:
            Values and their weights, by name.
        """
        return {}

    @property
    def has_auxiliary_terms(self) -> bool:
        """Whether :meth:`auxiliary_terms` can return any; by default, whether it is overridden."""
        return type(self).auxiliary_terms is not Network.auxiliary_terms

    def check_weight(self, weight: float | None) -> None:
        """Raise ``InputError`` if the network does not take this regularization weight."""
        if weight is not None:
            raise InputError(
                f"This network, a {type(self).__name__}, takes no weight; train one with network=conditioned."
            )

    def check(self, fixed: Image, moving: Image) -> None:
        """Raise ``InputError`` if the network does not take this pair."""
        for name, image in (("fixed", fixed), ("moving", moving)):
            if image.ndim != self.ndim or image.data.shape[1] != self.in_channels:
                raise InputError(
                    f"This network takes {self.ndim}-D images of {self.in_channels} channel(s), "
                    f"{name} is {image.ndim}-D with {image.data.shape[1]}; use a network trained for such images."
                )
        if fixed.grid.shape != moving.grid.shape:
            raise InputError(
                f"A network takes a pair on one grid, got {fixed.grid.shape} and {moving.grid.shape}; "
                "learnreg.register resamples any pair."
            )
