"""The interface of a registration network."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.transforms import Transform
from learnreg.typing import Scalar


class Network(nn.Module):
    """A module whose ``forward(fixed, moving)`` returns a :class:`Transform`."""

    ndim: int
    in_channels: int

    @abstractmethod
    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` lie on one grid, intensities in [0, 1]."""

    def task(self, fixed: Image, moving: Image, objective: Objective) -> tuple[Image, Image, Objective]:
        """What this network trains on and is judged by, in place of a pair and an objective; here, those themselves."""
        return fixed, moving, objective

    def terms(self, fixed: Image, moving: Image, transform: Transform, objective: Objective) -> dict[str, Scalar]:
        """What a training minimizes beside the objective, by name and with its weight: here, nothing.

        Asked for right after the pass that made ``transform``; the images are what the objective compares.
        """
        return {}

    @property
    def has_terms(self) -> bool:
        """Whether :meth:`terms` can say something, for those who prepare images for it: here, if it is overridden."""
        return type(self).terms is not Network.terms

    def check(self, fixed: Image, moving: Image) -> None:
        """Raise ``ValueError`` unless the pair is what the network takes."""
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
