"""Networks one after the other, trained together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network
from learnreg.objective import Objective
from learnreg.transforms import Transform, chain
from learnreg.typing import Scalar
from learnreg.warping import warp


class Cascade(Network):
    """Each network sees the moving image as those before it have placed it; the answers are composed.

    An affine network and a deformable one are the usual pair; the gradient passes through all of them, and
    the composition moves the original image once.

    Args:
        networks: At least one, for images of one kind.

    Raises:
        ValueError: There is none, or they take different images.

    Source:
        De Vos et al., Med. Image Anal. 2019; Zhao et al., Recursive cascaded networks, ICCV 2019.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        parts = [as_network(network) for network in networks]
        if len({(network.ndim, network.in_channels) for network in parts}) != 1:
            raise InputError("A cascade needs networks that take the same images, at least one.")
        self.networks = nn.ModuleList(parts)
        self.ndim, self.in_channels = parts[0].ndim, parts[0].in_channels
        self._answers: list[Transform] = []  # of the last pass of a training, until they are scored

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """``fixed`` and ``moving`` on one grid, intensities in [0, 1]."""
        answers: list[Transform] = []
        for network in self.networks:
            seen = _placed(Image(moving.data, moving.grid), answers, fixed)
            answers.append(network(fixed, Image(seen.data, seen.grid)))
        self._answers = answers if self.training else []
        return chain(*reversed(answers))

    @property
    def has_terms(self) -> bool:
        """If one of the networks has."""
        return any(network.has_terms for network in self.networks)

    def terms(self, fixed: Image, moving: Image, transform: Transform, objective: Objective) -> dict[str, Scalar]:
        """Those of each network, for the pair that it saw; of the same name, their sum."""
        answers, self._answers = self._answers, []
        total: dict[str, Scalar] = {}
        for number, (network, answer) in enumerate(zip(self.networks, answers, strict=False)):
            if not network.has_terms:
                continue
            seen = _placed(moving, answers[:number], fixed)
            for name, value in network.terms(fixed, seen, answer, objective).items():  # type: ignore[operator]
                total[name] = total[name] + value if name in total else value
        return total


def _placed(moving: Image, answers: Sequence[Transform], fixed: Image) -> Image:
    return warp(moving, chain(*reversed(answers)), fixed.grid) if answers else moving
