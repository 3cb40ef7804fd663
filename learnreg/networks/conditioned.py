"""Networks that take a regularization weight as an input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network
from learnreg.networks.blocks import start_near_zero
from learnreg.objective import Objective
from learnreg.transforms import Transform
from learnreg.typing import Scalar


class Conditioned(Network):
    """Any network, told how much regularization is wanted: one training, every weight at inference.

    Scale and offset after each instance norm depend on the weight. While training, a weight is drawn for
    each batch, uniformly in its logarithm, and the objective is weighted with it.

    Args:
        network: What is conditioned; it has instance norms.
        between: Least and greatest weight.
        weight: That of inference; ``None`` is the geometric mean of the two.
        penalty: The name of the penalty in the objective whose weight it is.
        hidden: Width of the layer that sees the weight.

    Raises:
        ValueError: The network has no instance norm, or the weights are not 0 < least < greatest.

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
        self.embedding = nn.Sequential(nn.Linear(1, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.Tanh())
        self.modulations = nn.ModuleList()
        for norm in norms:
            modulation = nn.Linear(hidden, 2 * norm.num_features)
            start_near_zero(modulation)
            self.modulations.append(modulation)
            norm.register_forward_hook(_Modulated(self, modulation))
        self.code: Tensor | None = None

    def task(self, fixed: Image, moving: Image, objective: Objective) -> tuple[Image, Image, Objective]:
        """The objective with the weight that is asked for; in training that is drawn, from torch's generator."""
        if self.training:
            low, high = (math.log(b) for b in self.between)
            self.weight = math.exp(low + (high - low) * float(torch.rand(())))
        return self.network.task(fixed, moving, objective.weighted(self.penalty, self.weight))

    @property
    def has_terms(self) -> bool:
        """If the network that is conditioned has."""
        return self.network.has_terms

    def terms(self, fixed: Image, moving: Image, transform: Transform, objective: Objective) -> dict[str, Scalar]:
        """Those of the network that is conditioned."""
        return self.network.terms(fixed, moving, transform, objective)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        low, high = (math.log(b) for b in self.between)
        position = 2 * (math.log(self.weight) - low) / (high - low) - 1
        with torch.autocast(fixed.data.device.type, enabled=False):
            self.code = self.embedding(fixed.data.new_full((1, 1), position, dtype=torch.float32))
        answer = self.network(fixed, moving)
        self.code = None
        return answer


class _Modulated:
    """Scale and offset of what a norm returns."""

    def __init__(self, owner: Conditioned, modulation: nn.Module) -> None:
        self.owner, self.modulation = owner, modulation

    def __call__(self, norm: nn.Module, inputs: Any, normalized: Tensor) -> Tensor:
        if self.owner.code is None:
            return normalized
        with torch.autocast(normalized.device.type, enabled=False):
            scale, offset = self.modulation(self.owner.code).to(normalized.dtype).chunk(2, dim=1)
        shape = (1, -1, *[1] * (normalized.ndim - 2))
        return normalized * (1 + scale.reshape(shape)) + offset.reshape(shape)
