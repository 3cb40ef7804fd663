"""Orientation: turn a pair to the orientation that a network was trained in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.adapters import as_network
from learnreg.networks.base import Network, Prediction, Task
from learnreg.networks.blocks import check_architecture, run_blocks, strided_encoder
from learnreg.networks.linear import moments
from learnreg.objective import Objective
from learnreg.orientation import Orientation
from learnreg.sampling import sample
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform
from learnreg.typing import ImageTensor


class Oriented(Network):
    """Network that recognizes in which orientation a pair lies, and gets it in the orientation of its training.

    A small encoder gives each of the 8 or 48 orientations of an image a score; the orientation of the highest sum over
    both images is taken. The scores of an image and of the same image turned are the same numbers in another order, so
    flips and right-angle turns of both images change no answer, if both have the same orientation. Each training image
    shows the encoder its own orientation as right and all others as wrong; nothing has to be annotated.

    Args:
        network: Network for images in one orientation.
        channels: Widths of the encoder at 1/2, 1/4, 1/8, ... of ``samples``.
        samples: Samples per axis of the cube that the encoder gets, the largest in the grid of the network.
        alone: Train the encoder only, beside a network that is trained already.

    Raises:
        InputError: There are no widths, or the cube has fewer than 2 samples at the lowest resolution.

    Source:
        Kaba et al., Equivariance with learned canonicalization functions, ICML 2023.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = Oriented(UNet(2, (4,)), channels=(4, 8)).eval()
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> turn = Orientation((1, 0), (True, False))
        >>> turned = image.with_data(turn(image.data))
        >>> there, back = network.orientation(turned, turned), network.orientation(image, image)
        >>> torch.equal(there(turned.data), back(image.data))
        True
    """

    def __init__(
        self, network: nn.Module, *, channels: Sequence[int] = (8, 16, 32), samples: int = 24, alone: bool = False
    ) -> None:
        super().__init__()
        self.network = as_network(network)
        self.ndim, self.in_channels = self.network.ndim, self.network.in_channels
        widths = check_architecture("Oriented", self.ndim, channels)
        if samples < 2 ** (len(widths) + 1):
            raise InputError(
                f"Oriented halves its cube {len(widths)} times, which needs samples of at least "
                f"{2 ** (len(widths) + 1)}, got {samples}."
            )
        self.samples, self.alone = int(samples), alone
        self.encoder = strided_encoder(self.ndim, self.in_channels, widths)
        self.head = nn.Linear((self.ndim + 1) * widths[-1], 1)
        self.network.requires_grad_(not alone)

    @property
    def recognizes_orientation(self) -> bool:
        return True

    def orientation(self, fixed: Image, moving: Image) -> Orientation:
        self.check(fixed, moving)
        with torch.no_grad():
            scores = self.scores(fixed).log_softmax(1) + self.scores(moving).log_softmax(1)
        return Orientation.every(self.ndim)[int(scores.sum(0).argmax())]

    def scores(self, images: Image) -> Tensor:
        """Compute how much each orientation looks like that of the training.

        Args:
            images: ``(B, C, *shape)``.

        Returns:
            ``(B, 8)`` or ``(B, 48)``, in the order of :meth:`learnreg.orientation.Orientation.every`; higher is better.
        """
        seen = self._cube(images)
        turned = torch.stack([turn(seen) for turn in Orientation.every(self.ndim)], dim=1)
        features = run_blocks(self.encoder, turned.flatten(0, 1))[-1]
        with torch.autocast(features.device.type, enabled=False):
            found: Tensor = self.head(moments(features.to(self.head.weight.dtype)))
            return found.unflatten(0, turned.shape[:2]).squeeze(-1)

    def _cube(self, images: Image) -> ImageTensor:
        """Sample images on the largest cube within their grid, along its axes."""
        grid, samples = images.grid, 2 * self.samples
        unit = Grid.regular([samples] * self.ndim, 1 / samples, dtype=grid.dtype).to(grid.device)
        around = (unit.points - unit.center).flatten(1, -2) * grid.extent.amin(1).reshape(-1, 1, 1)
        points = around @ grid.direction.mT + grid.center.unsqueeze(1)
        fine = sample(images.data, grid, points.unflatten(1, unit.shape))
        return F.avg_pool3d(fine, 2) if self.ndim == 3 else F.avg_pool2d(fine, 2)

    def task(self, fixed: Image, moving: Image, objective: Objective) -> Task:
        return self.network.task(fixed, moving, objective)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        """Predict the transform of a pair in the orientation of the training, see :meth:`Network.predict`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.alone):
            answer = self.network.predict(fixed, moving, weight=weight)
        scores = torch.cat([self.scores(image) for image in (fixed, moving)]) if self.training else None
        return Prediction(answer.transform, (answer, scores))

    @property
    def has_auxiliary_terms(self) -> bool:
        return True

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the terms of the network, and ``orientation``: the cross-entropy of the orientations."""
        answer, scores = prediction.auxiliary
        terms = {} if self.alone else dict(self.network.auxiliary_terms(answer, fixed, moving, objective))
        if scores is not None:
            right = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
            terms["orientation"] = WeightedValue(F.cross_entropy(scores, right), 1.0)
        return terms

    def check_weight(self, weight: float | None) -> None:
        self.network.check_weight(weight)
