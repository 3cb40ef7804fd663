"""Matching: descriptors of both images, compared everywhere with everywhere, and the transform that they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, get_args

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
from learnreg.similarity.mind import self_similarity
from learnreg.terms import WeightedValue
from learnreg.transforms import Affine, Transform, Velocity, chain, linear_through_landmarks
from learnreg.transforms.affine import LinearKind
from learnreg.typing import PointTensor, Scalar
from learnreg.warping import warp


class Settings(NamedTuple):
    """Of a search, see :func:`learnreg.search.coupled_search`."""

    couplings: tuple[float, ...]
    softness: float


ROUNDS = 3  # of the robust fit
RIDGE = 0.01  # draws the map to the identity: descriptors that have not learned match all with the middle
OUTLIER = 0.7  # samples of the descriptors; a match that is farther off than this counts little
COARSE = Settings((0.1, 1.0), 0.5)  # of the search on descriptors
FINE = Settings((0.05, 0.3), 0.2)  # of the searches on self-similarity
TAUGHT = 128  # landmarks of a pair that teach the descriptors
STEPS = 4  # squarings
SPARSE = 3  # places of the fixed image are matched in passes that another one follows: one in so many
LEVEL = 1  # of the features with descriptors: a quarter of the resolution


class MatchingNetwork(Network):
    """Network that matches descriptors of both images; a linear map and a flow follow from the matches without weights.

    A linear map is fitted in closed form to the matches of all places of the fixed image with all places of the moving
    image; a match counts as much as both images agree on it. Neither the size of a shift nor that of a rotation is
    limited by the network. Soft coupled searches then find stationary velocities: one on the descriptors, at a quarter
    of the resolution, then some on self-similarity (MIND-SSC), at half of it. Training learns the descriptors from
    landmarks, each told apart from all other places; images without landmarks train them through the whole transform.

    Args:
        ndim: 2 or 3.
        channels: Number of features at 1/2, 1/4, 1/8, ... of the resolution; at least two.
        descriptors: Length of a descriptor.
        in_channels: Channels of one image.
        kind: ``"rigid"``, ``"similarity"`` or ``"affine"``.
        passes: Times that the moving image is warped and matched again for the linear map; once in training.
        reach: Of the search on descriptors, in their samples; 0 leaves it out.
        fine: Reach of each search on self-similarity, in its samples; may be empty.
        resolution: Longest side in samples of the images that the network sees; larger ones are resized, except for the
            searches on self-similarity.
        weight: Weight, in training, of the cross-entropy of the matches of landmarks.

    Raises:
        InputError: An argument is out of its range.

    Source:
        Descriptors and their agreement are those of Sun et al., LoFTR, CVPR 2021; the fit is iteratively reweighted
        least squares; the searches are those of Heinrich et al., WBIR 2014, on learned features as in Siebert et al.,
        Learn2Reg 2021. Differs in: all matches in one linear map, velocities found from both sides.

    Example:
        >>> network = MatchingNetwork(2, (4, 8), descriptors=4, fine=(1,))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> [type(part).__name__ for part in network.eval()(image, image).transforms]  # the last one acts first
        ['Velocity', 'Velocity', 'Affine']
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        ndim: int = 3,
        channels: Sequence[int] = (24, 48, 64, 96),
        *,
        descriptors: int = 32,
        in_channels: int = 1,
        kind: LinearKind = "affine",
        passes: int = 4,
        reach: int = 3,
        fine: Sequence[int] = (2, 1),
        resolution: int = 64,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        widths = check_architecture("MatchingNetwork", ndim, channels)
        if kind not in get_args(LinearKind):
            raise InputError(f"A matching network fits {', '.join(get_args(LinearKind))}, got {kind!r}.")
        self.passes, self.reach, self.fine = int(passes), int(reach), [int(n) for n in fine]
        in_range = min(self.passes, *self.fine, int(descriptors)) >= 1 and min(self.reach, weight) >= 0
        if len(widths) <= LEVEL or not in_range or resolution < 2 ** len(widths):
            raise InputError(
                "MatchingNetwork needs at least two widths, descriptors of at least 1 number, 1 pass, a reach of at "
                f"least 0, a reach of at least 1 for each fine search, a resolution of at least {2 ** len(widths)} and "
                f"a weight of at least 0, got channels={widths}, descriptors={descriptors}, passes={passes}, "
                f"reach={reach}, fine={list(fine)}, resolution={resolution} and weight={weight}."
            )
        self.ndim, self.in_channels, self.kind = ndim, in_channels, kind
        self.resolution, self.weight = int(resolution), float(weight)
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.context = FeaturePyramid(ndim, widths[LEVEL:])
        self.head = CONVOLUTIONS[ndim](widths[LEVEL], descriptors, 1)
        self.sharpness = nn.Parameter(torch.tensor(math.log(10.0)))

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
            return Prediction(self.fitted(here, there, every=2**self.ndim), (here, there))
        return Prediction(self._searched(fixed, moving, self._matched(self._reduced(fixed), self._reduced(moving))))

    def _matched(self, fixed: Image, moving: Image) -> Transform:
        """Match descriptors: everywhere for a linear map, then nearby for velocities that act before it."""
        here = self.described(fixed)
        first, *others = [SPARSE] * (self.passes - 1) + [1]
        linear = self.fitted(here, self.described(moving), every=first)
        for every in others:
            before = plausible(linear)
            linear = self.fitted(here, self.described(_seen(moving, before, fixed.grid)), every=every).then(before)
        if self.reach == 0:
            return linear
        there = self.described(_seen(moving, linear, fixed.grid))
        return chain(_velocity(here, there, self.reach, COARSE), linear)

    def _searched(self, fixed: Image, moving: Image, found: Transform) -> Transform:
        """Search on self-similarity; what is found acts before what was found before it."""
        if not self.fine:
            return found
        here = _self_similarity(fixed)
        for reach in self.fine:
            there = _self_similarity(_seen(moving, found, fixed.grid))
            found = chain(_velocity(here, there, reach, FINE), found)
        return found

    def _reduced(self, image: Image) -> Image:
        factor = self.resolution / max(image.grid.shape)
        return image if factor >= 1 else resize_image(image, tuple(max(1, round(n * factor)) for n in image.grid.shape))

    def described(self, image: Image) -> Image:
        """Return descriptors of unit length at a quarter of the resolution, as the channels of an image."""
        least = 2 if max(image.grid.shape) <= self.stride else 1  # a norm needs two samples at the coarsest level
        data, grid = pad_to_multiple(image.data, image.grid, least * self.stride)
        values = self.context(run_blocks(self.encoder, data)[LEVEL:])[0]
        with torch.autocast(values.device.type, enabled=False):
            lengths = F.normalize(self.head(values.to(self.head.weight.dtype)), dim=1)
        return Image(lengths, grid.resized(tuple(lengths.shape[2:])))

    def fitted(self, fixed: Image, moving: Image, *, every: int = 1) -> Affine:
        """Fit a linear map to the matches of descriptors.

        Args:
            fixed: Result of :meth:`described`.
            moving: Result of :meth:`described`.
            every: Only each so many places of the fixed image are matched.
        """
        with torch.autocast(fixed.data.device.type, enabled=False):
            logits = self.sharpness.exp() * (fixed.data.flatten(2)[..., ::every].mT @ moving.data.flatten(2))
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
        """Compute the cross-entropy of the matches of the landmarks.

        Without landmarks there is no term: the network learns from the objective alone.
        """
        described: tuple[Image, Image] | None = prediction.auxiliary
        if described is None or self.weight == 0 or fixed.landmarks is None or moving.landmarks is None:
            return {}
        here, there = described
        points, targets = fixed.landmarks[:, :TAUGHT], moving.landmarks[:, :TAUGHT]  # they are in random order
        both = (self._entropy(here, there, points, targets) + self._entropy(there, here, targets, points)) / 2
        return {"matches": WeightedValue(both, self.weight)}

    def _entropy(self, here: Image, there: Image, points: PointTensor, targets: PointTensor) -> Scalar:
        """Compute the cross-entropy of the matches of points, where both points lie in the images.

        The true match is a mixture of the places around the target, so a position between them is learned too.
        """
        inside = ~points.isnan().any(-1) & (there.grid.to_normalized(targets.nan_to_num()).abs() < 1).all(-1)
        inside = inside & ~targets.isnan().any(-1)
        with torch.autocast(here.data.device.type, enabled=False):
            found = F.normalize(sample(here.data, here.grid, points.nan_to_num(), padding="border"), dim=1)
            true = sample(there.data, there.grid, targets.nan_to_num(), padding="border")
            sharpness = self.sharpness.exp()
            logits = sharpness * (found.mT @ there.data.flatten(2))
            losses = logits.logsumexp(2) - sharpness * (found * true).sum(1)
        return (losses * inside).sum() / inside.sum().clamp(min=1)


def _seen(moving: Image, transform: Transform, grid: Grid) -> Image:
    """Return the warped image without a mask."""
    return replace(warp(moving, transform, grid), mask=None)


def _self_similarity(image: Image) -> Image:
    """Return MIND-SSC descriptors, averaged to half of the resolution."""
    data, grid = pad_to_multiple(image.data, image.grid, 2)
    return resize_image(Image(self_similarity(data), grid), tuple(n // 2 for n in grid.shape))


def _velocity(fixed: Image, moving: Image, reach: int, settings: Settings) -> Velocity:
    """Search from both sides; a flow and its inverse have opposite velocities."""
    found = []
    for k in range(len(fixed.data)):
        grid = Grid(fixed.grid.shape, fixed.grid.affine.expand(len(fixed.data), -1, -1)[k : k + 1])
        search = partial(
            coupled_search, grid=grid, reach=reach, couplings=settings.couplings, softness=settings.softness
        )
        one, other = fixed.data[k : k + 1], moving.data[k : k + 1]
        found.append((search(one, other) - search(other, one)) / 2)
    return Velocity(torch.cat(found), fixed.grid, STEPS)


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
