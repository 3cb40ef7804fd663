"""Networks that take a regularization weight as an input."""

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
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform


class Conditioned(Network):
    """A network that takes the regularization weight as an input: one training serves every weight.

    Scale and offset after each instance norm depend on the weight. A training draws a weight per batch, uniformly in
    its logarithm, and weights the objective with it. Validation and inference use ``weight``, or the weight that
    :meth:`predict` is given.

    Args:
        network: The network to condition; it has instance norms.
        between: Least and greatest weight.
        weight: Default of inference and of validation; ``None`` is the geometric mean of the two.
        penalty: Name of the penalty of the objective that the weight belongs to.
        hidden: Width of the layers that embed the weight.

    Raises:
        InputError: The network has no instance norm, the range is not 0 < least < greatest, or ``weight`` is not in it.

    Source:
        Mok and Chung, Conditional deformable image registration with convolutional neural network, MICCAI 2021;
        Hoopes et al., HyperMorph, IPMI 2021.
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
            raise InputError(f"Conditioned needs weights 0 < least < greatest, got {least} and {greatest}.")
        network = as_network(network)
        norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d)]
        if not norms:
            raise InputError(f"Conditioned needs a network with instance norms; {type(network).__name__} has none.")
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
        """Return the pair with the weighted objective; a training draws the weight from torch's generator."""
        weight = self.weight
        if self.training:
            low, high = (math.log(b) for b in self.between)
            weight = math.exp(low + (high - low) * float(torch.rand(())))
        task = self.network.task(fixed, moving, objective.weighted(self.penalty, weight))
        return replace(task, weight=weight)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        low, high = (math.log(b) for b in self.between)
        position = 2 * (math.log(self.weight if weight is None else weight) - low) / (high - low) - 1
        with torch.autocast(fixed.data.device.type, enabled=False):
            code = self.embedding(fixed.data.new_full((1, 1), position, dtype=torch.float32))
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
            raise InputError(f"This network was trained for weights from {least:g} to {greatest:g}, got {weight:g}.")


# The weight's code of each conditioned network that is running, innermost last. It reaches the norms of any network
# without an argument, belongs to one thread and one call, and leaves nothing on a module.
_CODES: ContextVar[tuple[tuple[Conditioned, Tensor], ...]] = ContextVar("codes", default=())


class _Modulated:
    """Forward hook of a norm: scales and shifts what it returns."""

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
