"""Matching: descriptors of both images, compared everywhere with everywhere, and the transform that they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network, Prediction
from learnreg.networks.blocks import CONVOLUTIONS, FeaturePyramid, check_architecture, run_blocks, strided_encoder
from learnreg.networks.units import pad_to_multiple
from learnreg.objective import Objective
from learnreg.sampling import resize_image, sample
from learnreg.search import coupled_search
from learnreg.terms import WeightedValue
from learnreg.transforms import Affine, Transform, Velocity, chain, linear_through_landmarks
from learnreg.transforms.affine import LinearKind
from learnreg.typing import FieldTensor, PointTensor, Scalar
from learnreg.warping import warp

ROUNDS = 3  # of the robust fit
RIDGE = 0.01  # draws the map to the identity: descriptors that have not learned match all with the middle
OUTLIER = 1.5  # samples of the descriptors; a match that is farther off than this counts little
COUPLINGS = (0.1, 1.0)  # of the search
SOFTNESS = 0.5  # of the search, in mean costs
TAUGHT = 128  # landmarks of a pair that teach the descriptors of a level
STEPS = 4  # squarings
LEVELS = 2  # with descriptors: 1/2 and 1/4 of the resolution


class MatchingNetwork(Network):
    """Network that matches descriptors of both images; a linear map and a flow follow from the matches without weights.

    A linear map is fitted in closed form to the matches of all places of the fixed image with all places of the moving
    image; a match counts as much as both images agree on it. Neither the size of a shift nor that of a rotation is
    limited by the network. A soft coupled search on the descriptors then finds stationary velocities, at a quarter and
    at half of the resolution. Training learns the descriptors from landmarks, each told apart from all other places;
    images without landmarks train them through the whole transform.

    Args:
        ndim: 2 or 3.
        channels: Number of features at 1/2, 1/4, 1/8, ... of the resolution; at least two.
        descriptors: Length of a descriptor at 1/2 and 1/4 of the resolution.
        in_channels: Channels of one image.
        kind: ``"rigid"``, ``"similarity"`` or ``"affine"``.
        passes: Times that the moving image is warped and matched again for the linear map; once in training.
        reach: Of the search at 1/2 and 1/4 of the resolution, in samples of the descriptors; 0 leaves it out.
        resolution: Longest side of the images in samples for which all places are matched; larger images are resized.
        weight: Weight, in training, of the cross-entropy of the matches of landmarks.

    Raises:
        InputError: An argument is out of its range.

    Source:
        Descriptors and their agreement are those of Sun et al., LoFTR, CVPR 2021; the fit is iteratively reweighted
        least squares; the search is that of Heinrich et al., WBIR 2014, on learned features as in Siebert et al.,
        Learn2Reg 2021. Differs in: all matches in one linear map, velocities found from both sides.

    Example:
        >>> network = MatchingNetwork(2, (4, 8), descriptors=(4, 4))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> [type(part).__name__ for part in network.eval()(image, image).transforms]
        ['Velocity', 'Velocity', 'Affine']
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        ndim: int = 3,
        channels: Sequence[int] = (24, 48, 64, 96),
        *,
        descriptors: Sequence[int] = (16, 32),
        in_channels: int = 1,
        kind: LinearKind = "affine",
        passes: int = 2,
        reach: Sequence[int] = (2, 3),
        resolution: int = 64,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        widths = check_architecture("MatchingNetwork", ndim, channels)
        if kind not in get_args(LinearKind):
            raise InputError(f"A matching network fits {', '.join(get_args(LinearKind))}, got {kind!r}.")
        lengths, reaches = [int(n) for n in descriptors], [int(n) for n in reach]
        in_range = min(*lengths, passes) >= 1 and min(reaches) >= 0 and resolution >= 2 ** len(widths) and weight >= 0
        if len(widths) < LEVELS or not len(lengths) == len(reaches) == LEVELS or not in_range:
            raise InputError(
                "MatchingNetwork needs at least two widths, two lengths of descriptors of at least 1, two reaches of "
                f"at least 0, 1 pass, a resolution of at least {2 ** len(widths)} and a weight of at least 0, got "
                f"channels={widths}, descriptors={lengths}, reach={reaches}, passes={passes}, resolution={resolution} "
                f"and weight={weight}."
            )
        self.ndim, self.in_channels, self.kind = ndim, in_channels, kind
        self.passes, self.reach, self.resolution = int(passes), reaches, int(resolution)
        self.weight = float(weight)
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.context = FeaturePyramid(ndim, widths)
        self.heads = nn.ModuleList(
            CONVOLUTIONS[ndim](width, length, 1) for width, length in zip(widths[:LEVELS], lengths, strict=True)
        )
        self.sharpness = nn.Parameter(torch.full((LEVELS,), math.log(10.0)))

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict a linear map, and velocities unless landmarks teach the descriptors; see :meth:`Network.forward`."""
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        self.check(fixed, moving)
        taught = self.training and self.weight > 0 and fixed.landmarks is not None and moving.landmarks is not None
        fixed, moving = (Image(image.data, image.grid) for image in (fixed, moving))
        if taught:
            here, there = self.described(fixed), self.described(moving)
            return Prediction(self.fitted(here[-1], there[-1], every=2**self.ndim), (here, there))
        linear = self._linear(*(self._reduced(image) for image in (fixed, moving)))
        return Prediction(self._deformed(fixed, moving, linear))

    def _linear(self, fixed: Image, moving: Image) -> Affine:
        here = self.described(fixed)[-1]
        found = self.fitted(here, self.described(moving)[-1])
        for _ in range(self.passes - 1):
            before = plausible(found)
            seen = replace(warp(moving, before, fixed.grid), mask=None)
            found = self.fitted(here, self.described(seen)[-1]).then(before)
        return found

    def _deformed(self, fixed: Image, moving: Image, linear: Affine) -> Transform:
        """Search for velocities from coarse to fine; each acts before what was found before it."""
        here = self.described(fixed)
        found: list[Transform] = [linear]
        for level in reversed(range(LEVELS)):
            if self.reach[level] == 0:
                continue
            seen = replace(warp(moving, chain(*found), fixed.grid), mask=None)
            own, other = here[level], self.described(seen)[level]
            affines = own.grid.affine.expand(len(own.data), -1, -1)
            pairs = zip(own.data.split(1), other.data.split(1), affines.split(1), strict=True)
            fields = [self._velocity(a, b, Grid(own.grid.shape, affine), level) for a, b, affine in pairs]
            found = [Velocity(torch.cat(fields), own.grid, STEPS), *found]
        return chain(*found)

    def _velocity(self, fixed: Tensor, moving: Tensor, grid: Grid, level: int) -> FieldTensor:
        """Search from both sides; a flow and its inverse have opposite velocities."""
        search = partial(coupled_search, grid=grid, reach=self.reach[level], couplings=COUPLINGS, softness=SOFTNESS)
        return (search(fixed, moving) - search(moving, fixed)) / 2

    def _reduced(self, image: Image) -> Image:
        factor = self.resolution / max(image.grid.shape)
        return image if factor >= 1 else resize_image(image, tuple(max(1, round(n * factor)) for n in image.grid.shape))

    def described(self, image: Image) -> list[Image]:
        """Return descriptors of unit length at half and at a quarter of the resolution, as the channels of images."""
        least = 2 if max(image.grid.shape) <= self.stride else 1  # a norm needs two samples at the coarsest level
        data, grid = pad_to_multiple(image.data, image.grid, least * self.stride)
        features = self.context(run_blocks(self.encoder, data))
        found = []
        for head, values in zip(self.heads, features, strict=False):
            with torch.autocast(values.device.type, enabled=False):
                lengths = F.normalize(head(values.to(head.weight.dtype)), dim=1)
            found.append(Image(lengths, grid.resized(tuple(lengths.shape[2:]))))
        return found

    def fitted(self, fixed: Image, moving: Image, *, every: int = 1) -> Affine:
        """Fit a linear map to the matches of descriptors.

        Args:
            fixed: The coarser result of :meth:`described`.
            moving: The coarser result of :meth:`described`.
            every: Only each so many places of the fixed image are matched.
        """
        with torch.autocast(fixed.data.device.type, enabled=False):
            logits = self.sharpness[-1].exp() * (fixed.data.flatten(2)[..., ::every].mT @ moving.data.flatten(2))
            agreement = logits.softmax(2) * logits.softmax(1)
            here, there = (image.grid.points.flatten(1, -2).expand(len(logits), -1, -1) for image in (fixed, moving))
            here = here[:, ::every]
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
        """Compute the cross-entropy of the matches of the landmarks, for each level of descriptors.

        Without landmarks there are no terms: the network learns from the objective alone.
        """
        described: tuple[list[Image], list[Image]] | None = prediction.auxiliary
        if described is None or self.weight == 0 or fixed.landmarks is None or moving.landmarks is None:
            return {}
        terms = {}
        for level, (here, there) in enumerate(zip(*described, strict=True)):
            points, targets = fixed.landmarks[:, :TAUGHT], moving.landmarks[:, :TAUGHT]  # they are in random order
            forth = self._entropy(level, here, there, points, targets)
            back = self._entropy(level, there, here, targets, points)
            terms[f"matches_{level}"] = WeightedValue((forth + back) / 2, self.weight)
        return terms

    def _entropy(self, level: int, here: Image, there: Image, points: PointTensor, targets: PointTensor) -> Scalar:
        """Compute the cross-entropy of the matches of points, where both points lie in the images.

        The true match is a mixture of the places around the target, so a position between them is learned too.
        """
        inside = ~points.isnan().any(-1) & (there.grid.to_normalized(targets.nan_to_num()).abs() < 1).all(-1)
        inside = inside & ~targets.isnan().any(-1)
        with torch.autocast(here.data.device.type, enabled=False):
            found = F.normalize(sample(here.data, here.grid, points.nan_to_num(), padding="border"), dim=1)
            true = sample(there.data, there.grid, targets.nan_to_num(), padding="border")
            sharpness = self.sharpness[level].exp()
            logits = sharpness * (found.mT @ there.data.flatten(2))
            losses = logits.logsumexp(2) - sharpness * (found * true).sum(1)
        return (losses * inside).sum() / inside.sum().clamp(min=1)


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
