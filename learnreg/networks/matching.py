"""Matching: descriptors of both images, compared everywhere with everywhere, and the linear map that they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.networks.base import Network, Prediction
from learnreg.networks.blocks import CONVOLUTIONS, FeaturePyramid, check_architecture, run_blocks, strided_encoder
from learnreg.networks.units import pad_to_multiple
from learnreg.objective import Objective
from learnreg.sampling import resize_image, sample
from learnreg.supervision import landmark_loss
from learnreg.terms import WeightedValue
from learnreg.transforms import Affine, linear_through_landmarks
from learnreg.transforms.affine import LinearKind
from learnreg.typing import PointTensor
from learnreg.warping import warp

ROUNDS = 3  # of the robust fit
RIDGE = 0.01  # draws the map to the identity: descriptors that have not learned match all with the middle
OUTLIER = 1.5  # samples of the descriptors; a match that is farther off than this counts little


class MatchingNetwork(Network):
    """Network that matches descriptors of both images, and fits a linear map to the matches in closed form.

    Each place of the fixed image is matched with all places of the moving image by a softmax; a match counts as much as
    both images agree on it. Neither the size of a shift nor that of a rotation is limited by the network. Training
    learns the descriptors from landmarks, if the images have some, and from the objective.

    Args:
        ndim: 2 or 3.
        channels: Number of features at 1/2, 1/4, 1/8, ... of the resolution; at least two.
        descriptors: Length of a descriptor.
        in_channels: Channels of one image.
        kind: ``"rigid"``, ``"similarity"`` or ``"affine"``.
        passes: Times that the moving image is warped and matched again.
        resolution: Longest side of the images in samples for which matches are computed; larger images are resized.
        weight: Weight, in training, of the distance of the landmarks and of their matches.

    Raises:
        InputError: An argument is out of its range.

    Source:
        Descriptors and their agreement are those of Sun et al., LoFTR, CVPR 2021; the fit is iteratively reweighted
        least squares. Differs in: descriptors of one scale, all matches in one linear map.

    Example:
        >>> network = MatchingNetwork(2, (4, 8), descriptors=4)
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> network(image, image).matrix.shape
        torch.Size([1, 3, 3])
    """

    def __init__(
        self,
        ndim: int = 3,
        channels: Sequence[int] = (16, 32, 64, 64),
        *,
        descriptors: int = 32,
        in_channels: int = 1,
        kind: LinearKind = "affine",
        passes: int = 2,
        resolution: int = 64,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        widths = check_architecture("MatchingNetwork", ndim, channels)
        if kind not in get_args(LinearKind):
            raise InputError(f"A matching network fits {', '.join(get_args(LinearKind))}, got {kind!r}.")
        if len(widths) < 2 or min(descriptors, passes) < 1 or resolution < 2 ** len(widths) or weight < 0:
            raise InputError(
                "MatchingNetwork needs two widths, at least 1 descriptor and 1 pass, a resolution of at least "
                f"{2 ** len(widths)} and a weight of at least 0, got channels={widths}, descriptors={descriptors}, "
                f"passes={passes}, resolution={resolution} and weight={weight}."
            )
        self.ndim, self.in_channels, self.kind = ndim, in_channels, kind
        self.passes, self.resolution, self.weight = int(passes), int(resolution), float(weight)
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.context = FeaturePyramid(ndim, widths[1:])
        self.head = CONVOLUTIONS[ndim](widths[1], descriptors, 1)
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, fixed: Image, moving: Image) -> Affine:
        """Predict the transform of a pair; see :meth:`Network.forward`."""
        transform: Affine = self.predict(fixed, moving).transform  # type: ignore[assignment]
        return transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        self.check(fixed, moving)
        fixed, moving = (self._reduced(Image(image.data, image.grid)) for image in (fixed, moving))
        here = self.described(fixed)
        found: Affine | None = None
        passes = []
        for _ in range(self.passes):
            before = None if found is None else plausible(found)
            seen = moving if before is None else replace(warp(moving, before, fixed.grid), mask=None)
            there = self.described(seen)
            fit = self.fitted(here, there)
            found = fit if before is None else fit.then(before)
            passes.append(_Pass(here, there, before, found))
        assert found is not None  # noqa: S101 - there is at least one pass
        return Prediction(found, tuple(passes) if self.training else None)

    def _reduced(self, image: Image) -> Image:
        factor = self.resolution / max(image.grid.shape)
        return image if factor >= 1 else resize_image(image, tuple(max(1, round(n * factor)) for n in image.grid.shape))

    def described(self, image: Image) -> Image:
        """Return descriptors of unit length at a quarter of the resolution, as the channels of an image."""
        data, grid = pad_to_multiple(image.data, image.grid, self.stride)
        features = self.context(run_blocks(self.encoder, data)[1:])[0]
        with torch.autocast(features.device.type, enabled=False):
            found = F.normalize(self.head(features.to(self.head.weight.dtype)), dim=1)
        return Image(found, grid.resized(tuple(found.shape[2:])))

    def fitted(self, fixed: Image, moving: Image) -> Affine:
        """Fit a linear map to the matches of descriptors.

        Args:
            fixed: Result of :meth:`described`.
            moving: Result of :meth:`described`.
        """
        with torch.autocast(fixed.data.device.type, enabled=False):
            logits = self.sharpness.exp() * (fixed.data.flatten(2).mT @ moving.data.flatten(2))
            agreement = logits.softmax(2) * logits.softmax(1)
            here, there = (image.grid.points.flatten(1, -2).expand(len(logits), -1, -1) for image in (fixed, moving))
            matched = (agreement @ there) / agreement.sum(2, keepdim=True).clamp(min=1e-12)
            # The largest, not the sum: background matches all of the background, and says nothing.
            scale = OUTLIER * fixed.grid.spacing.amax(1, keepdim=True)
            return robust_fit(here, matched, agreement.amax(2), self.kind, scale)

    @property
    def has_auxiliary_terms(self) -> bool:
        return self.weight > 0

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the cross-entropy of the matches of the landmarks, and the landmarks' distance after each pass.

        Without landmarks there are no terms: the network learns from the objective alone.
        """
        passes: tuple[_Pass, ...] | None = prediction.auxiliary
        if not passes or self.weight == 0 or fixed.landmarks is None or moving.landmarks is None:
            return {}
        distances, entropies = [], []
        for made in passes:
            there = moving.landmarks if made.before is None else made.before.inverse()(moving.landmarks)
            mapped = made.transform(fixed.landmarks.nan_to_num())
            distances.append(landmark_loss(mapped, moving.landmarks, fixed.landmarks))
            entropies += [
                self._entropy(made.fixed, made.moving, fixed.landmarks, there),
                self._entropy(made.moving, made.fixed, there, fixed.landmarks),
            ]
        return {
            "affine": WeightedValue(torch.stack(distances).mean(), self.weight),
            "matches": WeightedValue(torch.stack(entropies).mean(), self.weight),
        }

    def _entropy(self, here: Image, there: Image, points: PointTensor, targets: PointTensor) -> Tensor:
        """Compute the cross-entropy of the matches of points, where both points lie in the images."""
        index = there.grid.to_index(targets).detach()
        size = there.grid.size
        inside = ((index > -0.5) & (index < size - 0.5)).all(-1) & ~points.isnan().any(-1)  # false for NaN
        with torch.autocast(here.data.device.type, enabled=False):
            found = F.normalize(sample(here.data, here.grid, points.nan_to_num().detach(), padding="border"), dim=1)
            logits = self.sharpness.exp() * (found.mT @ there.data.flatten(2))
        cell = index.nan_to_num().round().clamp(min=torch.zeros_like(size), max=size - 1).long()
        steps = torch.cumprod(torch.cat([torch.ones_like(size[:1]), size[:-1]]), 0).long()
        losses = F.cross_entropy(logits.flatten(0, 1), (cell * steps).sum(-1).flatten(), reduction="none")
        return (losses * inside.flatten()).sum() / inside.sum().clamp(min=1)


@dataclass(frozen=True, eq=False)
class _Pass:
    """Descriptors of a pass, the transform by which the moving image had been warped, and the transform after it."""

    fixed: Image
    moving: Image
    before: Affine | None
    transform: Affine


def robust_fit(
    fixed: PointTensor, moving: PointTensor, weights: Float[Tensor, "B K"], kind: LinearKind, scale: float | Tensor
) -> Affine:
    """Fit a linear map to weighted pairs of points, of which some are wrong.

    Args:
        fixed: ``(B, K, D)``, mm.
        moving: ``(B, K, D)``, mm, in the same order.
        weights: At least 0.
        kind: See :func:`learnreg.transforms.linear_through_landmarks`.
        scale: mm, one value or ``(B, 1)``; a pair that is off by this counts half.

    Returns:
        The map after a few rounds of reweighting by Cauchy's function.

    Source:
        Holland and Welsch, Robust regression using iteratively reweighted least-squares, Commun. Stat. 1977.

    Example:
        >>> points = torch.rand(1, 50, 3)
        >>> wrong = torch.cat([points[:, :40] + 1, points[:, 40:] - 5], dim=1)
        >>> found = robust_fit(points, wrong, torch.ones(1, 50), "rigid", 0.1)
        >>> bool((found(points) - points - 1).abs().max() < 0.1)
        True
    """
    found = linear_through_landmarks(fixed, moving, kind, weights=weights, ridge=RIDGE)
    for _ in range(ROUNDS - 1):
        off = (found(fixed) - moving).square().sum(-1).detach()
        found = linear_through_landmarks(fixed, moving, kind, weights=weights / (1 + off / scale**2), ridge=RIDGE)
    return found


def plausible(transform: Affine, largest: float = 2.5) -> Affine:
    """Return an affine map without gradient whose scales lie between ``1 / largest`` and ``largest``, and no mirror.

    A network that has not learned yet matches everything with the middle of an image.

    Example:
        >>> plausible(Affine(torch.zeros(1, 4, 4))).matrix.diagonal(dim1=1, dim2=2)
        tensor([[0.4000, 0.4000, 0.4000, 1.0000]])
    """
    matrix = transform.matrix.detach().clone()
    ndim = transform.ndim
    left, scales, right = torch.linalg.svd(matrix[:, :ndim, :ndim].double())
    proper = torch.linalg.det(left @ right).sign()
    left = torch.cat([left[..., :-1], left[..., -1:] * proper.reshape(-1, 1, 1)], dim=-1)
    matrix[:, :ndim, :ndim] = (left * scales.clamp(1 / largest, largest).unsqueeze(1) @ right).to(matrix)
    matrix[:, ndim, ndim] = 1
    return Affine(matrix)
