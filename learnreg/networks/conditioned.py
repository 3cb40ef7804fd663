"""Networks that take the regularization weight as an input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network, Prediction, Task
from learnreg.networks.blocks import start_near_zero
from learnreg.objective import Objective
from learnreg.orientation import Orientation
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform


class Conditioned(Network):
    """Network that takes the regularization weight as an input, so that one training serves a range of weights.

    The weight determines a scale and an offset after each instance norm. In training, each batch gets a random weight,
    uniform in its logarithm, and the objective gets the same weight. Validation uses the default ``weight``, and
    inference the weight that :meth:`predict` gets.

    Args:
        network: Network with instance norms.
        between: Lowest and highest weight.
        weight: Default weight of validation and inference; ``None`` is the geometric mean of ``between``.
        penalty: Name of the penalty of the objective whose weight is the input.
        hidden: Width of the layers that embed the weight.

    Raises:
        InputError: The network has no instance norm, ``between`` is not 0 < lowest < highest, or ``weight`` is not in
            this range.

    Source:
        Mok and Chung, Conditional deformable image registration with convolutional neural network, MICCAI 2021;
        Hoopes et al., HyperMorph, IPMI 2021.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = Conditioned(UNet(2, (4,)), between=(0.01, 1.0))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> smooth = network.predict(image, image, weight=1.0).transform
        >>> round(network.weight, 3)
        0.1
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        between: Sequence[float] = (0.01, 1.0),
        weight: float | None = None,
        penalty: str = "diffusion",
        hidden: int = 32,
    ) -> None:
        super().__init__()
        least, greatest = (float(b) for b in between)
        if not 0 < least < greatest:
            raise InputError(
                f"Conditioned needs between=(least, greatest) with 0 < least < greatest, got ({least}, {greatest})."
            )
        network = as_network(network)
        norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d)]
        if not norms:
            raise InputError(
                f"Conditioned needs a network with instance norms, {type(network).__name__} has none; choose another "
                "network, such as a Pyramid or a UNet."
            )
        self.network, self.penalty = network, penalty
        self.ndim, self.in_channels = network.ndim, network.in_channels
        self.between = least, greatest
        self.weight = math.sqrt(least * greatest) if weight is None else float(weight)
        self.check_weight(self.weight)
        self.embedding = nn.Sequential(nn.Linear(1, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.Tanh())
        self.modulations = nn.ModuleList()
        for norm in norms:
            modulation = nn.Linear(hidden, 2 * norm.num_features)
            start_near_zero(modulation)
            self.modulations.append(modulation)
            norm.register_forward_hook(_Modulated(self, modulation))

    def task(self, fixed: Image, moving: Image, objective: Objective) -> Task:
        """Return the pair with the weighted objective; in training, the weight is drawn from torch's generator."""
        weight = self.weight
        if self.training:
            low, high = (math.log(b) for b in self.between)
            weight = math.exp(low + (high - low) * float(torch.rand(())))
        task = self.network.task(fixed, moving, objective.weighted(self.penalty, weight))
        return replace(task, weight=weight)

    @property
    def recognizes_orientation(self) -> bool:
        return self.network.recognizes_orientation

    def orientation(self, fixed: Image, moving: Image) -> Orientation:
        return self.network.orientation(fixed, moving)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        low, high = (math.log(b) for b in self.between)
        position = 2 * (math.log(self.weight if weight is None else weight) - low) / (high - low) - 1
        with torch.autocast(fixed.data.device.type, enabled=False):
            code = self.embedding(next(self.embedding.parameters()).new_full((1, 1), position))
        reset = _CODES.set((*_CODES.get(), (self, code)))
        try:
            return self.network.predict(fixed, moving)
        finally:
            _CODES.reset(reset)

    @property
    def has_auxiliary_terms(self) -> bool:
        return self.network.has_auxiliary_terms

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        return self.network.auxiliary_terms(prediction, fixed, moving, objective)

    def check_weight(self, weight: float | None) -> None:
        least, greatest = self.between
        if weight is not None and not least * (1 - 1e-6) <= weight <= greatest * (1 + 1e-6):
            raise InputError(
                f"This network was trained for weights from {least:g} to {greatest:g}, got {weight:g}; choose a weight "
                "in this range."
            )


# Embedded weight of each conditioned network that is running, the innermost last. A context variable passes it to the
# hooks of the norms, so forward() of the inner network needs no argument for it. It belongs to one thread and one call,
# so a module stores nothing of a pass.
_CODES: ContextVar[tuple[tuple[Conditioned, Tensor], ...]] = ContextVar("codes", default=())


class _Modulated:
    """Forward hook of an instance norm: scales and shifts its output by the embedded weight.

    Args:
        owner: Conditioned network whose weight is used.
        modulation: Maps the embedded weight to scales and offsets, one of each per channel.
    """

    def __init__(self, owner: Conditioned, modulation: nn.Module) -> None:
        self.owner, self.modulation = owner, modulation

    def __call__(self, norm: nn.Module, inputs: Any, normalized: Tensor) -> Tensor:
        code = next((code for owner, code in reversed(_CODES.get()) if owner is self.owner), None)
        if code is None:
            return normalized
        with torch.autocast(normalized.device.type, enabled=False):
            scale, offset = self.modulation(code).to(normalized.dtype).chunk(2, dim=1)
        shape = (1, -1, *[1] * (normalized.ndim - 2))
        return normalized * (1 + scale.reshape(shape)) + offset.reshape(shape)
