"""Learning rates over a training: the factor of the rate as a function of the share that is done.

Schedules of ``torch.optim.lr_scheduler`` count steps. A training that ends by the clock does not know how many it will
take, so these follow the share instead; with a known number of steps they have the values of PyTorch's schedules.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from learnreg.errors import InputError


class Schedule(ABC):
    """Factor of the learning rate as a function of the share of the training that is done, after the warm-up.

    Example:
        >>> class Halved(Schedule):
        ...     def __call__(self, share):
        ...         return 1.0 if share < 0.5 else 0.5
        >>> Halved()(0.7)
        0.5
    """

    @abstractmethod
    def __call__(self, share: float) -> float:
        """Return the factor.

        Args:
            share: From 0, the end of the warm-up, to 1, the end of the training.
        """


class Cosine(Schedule):
    """Half a cosine from 1 to ``end``, as ``torch.optim.lr_scheduler.CosineAnnealingLR``.

    Args:
        end: Factor at the end of the training.

    Raises:
        InputError: ``end`` is not from 0 to 1.

    Source:
        Loshchilov and Hutter, SGDR, ICLR 2017. Differs in: no restarts.

    Example:
        >>> Cosine(end=0.1)(1.0)
        0.1
    """

    def __init__(self, end: float = 0.0) -> None:
        self.end = _checked("Cosine", end)

    def __call__(self, share: float) -> float:
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * share))


class Polynomial(Schedule):
    """Power of the share that is left, from 1 to ``end``, as ``torch.optim.lr_scheduler.PolynomialLR``.

    Args:
        power: 1 is a straight line.
        end: Factor at the end of the training.

    Raises:
        InputError: ``power`` is not positive, or ``end`` is not from 0 to 1.

    Example:
        >>> Polynomial(power=2)(0.5)
        0.25
    """

    def __init__(self, power: float = 1.0, end: float = 0.0) -> None:
        if not 0 < power < math.inf:
            raise InputError(f"Polynomial.power must be positive, got {power}; 1 is a straight line.")
        self.power, self.end = float(power), _checked("Polynomial", end)

    def __call__(self, share: float) -> float:
        return self.end + (1 - self.end) * float((1 - share) ** self.power)


class Constant(Schedule):
    """The same learning rate until the end.

    Example:
        >>> Constant()(0.9)
        1.0
    """

    def __call__(self, share: float) -> float:
        return 1.0


class Steps(Schedule):
    """Learning rate that falls at once at some shares of the training, as ``torch.optim.lr_scheduler.MultiStepLR``.

    Args:
        at: Shares of the training after the warm-up, rising from 0 to 1.
        factor: Factor at each of them.

    Raises:
        InputError: ``at`` does not rise from 0 to 1, or ``factor`` is not from 0 to 1.

    Example:
        >>> [Steps([0.5, 0.75], factor=0.5)(share) for share in (0.4, 0.5, 0.9)]
        [1.0, 0.5, 0.25]
    """

    def __init__(self, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> None:
        self.at, self.factor = tuple(float(share) for share in at), _checked("Steps", factor, "factor")
        if list(self.at) != sorted(self.at) or not all(0 <= share <= 1 for share in self.at):
            raise InputError(f"Steps.at are shares of the training rising from 0 to 1, got {list(at)}.")

    def __call__(self, share: float) -> float:
        return float(self.factor ** sum(share >= passed for passed in self.at))


def _checked(name: str, value: float, key: str = "end") -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{name}.{key} is a factor of the learning rate, from 0 to 1, got {value}.")
    return float(value)
