"""Cascades: networks that run one after the other and are trained together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network, Prediction
from learnreg.objective import Objective
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform, chain
from learnreg.warping import warp


class Cascade(Network):
    """Networks in order: each gets the moving image warped by the networks before it.

    The transforms of all networks are composed, so the original moving image is warped once. The gradient passes
    through all networks. An affine network followed by a deformable network is the usual cascade.

    Args:
        networks: At least one; all for the same dimension and number of channels.

    Raises:
        InputError: There is no network, the networks differ in dimension or channels, or one changes the pair or the
            objective of a training, such as a :class:`Conditioned` network or a :class:`LearnedTemplate`.

    Source:
        De Vos et al., Med. Image Anal. 2019; Zhao et al., Recursive cascaded networks, ICCV 2019.

    Example:
        >>> from learnreg.networks import AffineNetwork, UNet
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> cascade = Cascade([AffineNetwork(2, (4,)), UNet(2, (4,))])
        >>> [type(part).__name__ for part in cascade(image, image).transforms]  # the last network acts first
        ['Velocity', 'Affine']
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        parts = [as_network(network) for network in networks]
        if len({(network.ndim, network.in_channels) for network in parts}) != 1:
            found = [f"{type(n).__name__} ({n.ndim}-D, {n.in_channels} channel(s))" for n in parts]
            raise InputError(
                f"A cascade needs at least one network, and all networks for the same images, got {found or 'none'}."
            )
        own = [type(network).__name__ for network in parts if type(network).task is not Network.task]
        if own:
            raise InputError(
                f"A cascade takes no network that changes the pair or the objective of a training, got {own}; put the "
                "whole cascade into it, such as Conditioned(Cascade(...))."
            )
        self.networks = nn.ModuleList(parts)
        self.ndim, self.in_channels = parts[0].ndim, parts[0].in_channels

    @property
    def parts(self) -> list[Network]:
        """The networks in the order in which they run."""
        return [network for network in self.networks if isinstance(network, Network)]

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        answers: list[Prediction] = []
        for network in self.parts:
            seen = _warped(Image(moving.data, moving.grid), answers, fixed)
            answers.append(network.predict(fixed, Image(seen.data, seen.grid)))
        return Prediction(_composed(answers), tuple(answers))

    @property
    def has_auxiliary_terms(self) -> bool:
        return any(network.has_auxiliary_terms for network in self.parts)

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the terms of each network for the pair that it got, named ``<position>_<name>``."""
        answers: tuple[Prediction, ...] = prediction.auxiliary
        total: dict[str, WeightedValue] = {}
        for number, (network, answer) in enumerate(zip(self.parts, answers, strict=True)):
            if network.has_auxiliary_terms:
                seen = _warped(moving, answers[:number], fixed)
                own = network.auxiliary_terms(answer, fixed, seen, objective)
                total |= {f"{number}_{name}": value for name, value in own.items()}
        return total


def _composed(answers: Sequence[Prediction]) -> Transform:
    """Compose the transforms of the networks.

    The transform of the last network acts first, because it was predicted for the image that the others had warped.
    """
    return chain(*(answer.transform for answer in reversed(answers)))


def _warped(moving: Image, answers: Sequence[Prediction], fixed: Image) -> Image:
    return warp(moving, _composed(answers), fixed.grid) if answers else moving
