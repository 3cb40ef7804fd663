"""``Orientation``: an exchange and reversal of the axes of an image, which a header can record or lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor

from learnreg.errors import InputError


@dataclass(frozen=True)
class Orientation:
    """Right-angle turn of an image, with or without a reflection.

    Args:
        order: The index axis, from 0, that each index axis is taken from.
        flips: Whether each index axis is then reversed.

    Raises:
        InputError: ``order`` is not a permutation of the axes, or ``flips`` has another length.

    Example:
        >>> Orientation((1, 0), (False, True))(torch.arange(6.0).reshape(1, 1, 2, 3))[0, 0]
        tensor([[3., 0.],
                [4., 1.],
                [5., 2.]])
        >>> len(Orientation.every(3))
        48
    """

    order: Sequence[int]
    flips: Sequence[bool]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.flips))):
            raise InputError(f"An orientation has each axis once and a flip of each, got {self.order}, {self.flips}.")

    @staticmethod
    def every(ndim: int) -> list[Orientation]:
        """Return the 8 orientations in 2-D or the 48 in 3-D; the first changes nothing."""
        return [
            Orientation(order, flips)
            for order in permutations(range(ndim))
            for flips in product((False, True), repeat=ndim)
        ]

    @staticmethod
    def random(ndim: int) -> Orientation:
        """Draw one of all orientations from torch's generator."""
        return Orientation(torch.randperm(ndim).tolist(), (torch.rand(ndim) < 0.5).tolist())

    @property
    def identical(self) -> bool:
        """Whether it changes nothing."""
        return list(self.order) == list(range(len(self.order))) and not any(self.flips)

    @property
    def matrix(self) -> Tensor:
        """``(D, D)``: how points move about the center of an image with its axes along those of space."""
        ndim = len(self.order)
        matrix = torch.zeros(ndim, ndim)
        for axis, (source, flipped) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[ndim - 1 - axis, ndim - 1 - source] = -1.0 if flipped else 1.0
        return matrix

    def __call__(self, values: Tensor) -> Tensor:
        """Exchange and reverse the axes of ``(B, C, *shape)``."""
        dims = [2 + axis for axis, flipped in enumerate(self.flips) if flipped]
        return values.permute(0, 1, *[2 + axis for axis in self.order]).flip(dims)
