"""Dual-stream pyramid: separate features of both images, compared from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.base import Network, Prediction
from learnreg.networks.blocks import (
    FeaturePyramid,
    FieldHead,
    check_architecture,
    convolution,
    run_blocks,
    strided_encoder,
)
from learnreg.networks.segmentation import SegmentationHead
from learnreg.networks.units import pad_to_multiple, per_spacing, voxels_to_mm
from learnreg.numerics import full_precision
from learnreg.objective import Objective
from learnreg.sampling import resize, resize_image, sample
from learnreg.terms import WeightedValue
from learnreg.transforms import Transform, Velocity, chain
from learnreg.typing import FieldTensor, Scalar

SEGMENTED = 2  # number of levels whose features learn to classify labels


class Pyramid(Network):
    """Network that encodes each image separately, and corrects a velocity from coarse to fine.

    At each level, the features of the moving image are warped by the transform of the coarser levels. A decoder then
    predicts a correction from both features. Except at the finest level, it also gets the local correlation of the
    features, see ``reach``. The result is a stationary velocity at half resolution: its flow is a diffeomorphism, and
    instance optimization can refine it.

    Args:
        ndim: 2 or 3.
        channels: Number of features at 1/2, 1/4, 1/8, ... of the resolution.
        in_channels: Channels of one image.
        steps: Number of squarings of the velocity.
        reach: Largest shift along each axis for the local correlation, in samples; 0 disables it.
        passes: Number of corrections per level, by the same weights: one number for all levels, or one per level in the
            order of ``channels``.
        symmetric: Subtract the correction of the exchanged pair from that of the pair, and use half of the difference.
            The transform of the exchanged pair is then exactly the inverse.
        composed: If ``True``, compose the flow of each correction with the transform so far; the result is a composite
            of velocities, each on the grid of its level. If ``False``, add each correction to one velocity.
        context: Add features of the coarser levels to the finer ones before the first level (feature pyramid).
        segments: Label values that the features of the two finest levels learn to classify in training; empty without
            labels.
        segmentation: Weight of the classification, see :class:`learnreg.networks.segmentation.SegmentationHead`. Set it
            to 0 to continue the training of such a network without labels.
        deep: Weight, in training, of the mean objective of the transforms of the coarser levels.

    Raises:
        InputError: An argument is out of its range, or ``symmetric`` and ``composed`` are both set.

    Source:
        The family of Mok and Chung, LapIRN, MICCAI 2020, and Honkamaa and Marttinen, SITReg, MELBA 2024; the local
        correlation is that of Sun et al., PWC-Net, CVPR 2018, the passes are those of Teed and Deng, RAFT, ECCV 2020,
        the context is that of Lin et al., Feature pyramid networks, CVPR 2017, the second task is that of Xu and
        Niethammer, DeepAtlas, MICCAI 2019. Differs in: one velocity that is corrected, unless ``composed``.

    Example:
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16, 16), learnreg.Grid.regular((16, 16, 16)))
        >>> Pyramid(channels=(4, 8))(image, image).displacement(image.grid).shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        ndim: int = 3,
        channels: Sequence[int] = (16, 32, 48, 64),
        *,
        in_channels: int = 1,
        steps: int = 4,
        reach: int = 1,
        passes: int | Sequence[int] = 1,
        symmetric: bool = False,
        composed: bool = False,
        context: bool = False,
        segments: Sequence[int] = (),
        segmentation: float = 0.5,
        deep: float = 0.0,
    ) -> None:
        super().__init__()
        widths = check_architecture("Pyramid", ndim, channels)
        counts = [passes] * len(widths) if isinstance(passes, int) else [int(n) for n in passes]
        if reach < 0 or deep < 0 or segmentation < 0 or min(counts, default=0) < 1 or len(counts) != len(widths):
            raise InputError(
                "Pyramid needs reach and weights `deep` and `segmentation` of at least 0, and at least 1 pass on each "
                f"of {len(widths)} levels, got reach={reach}, deep={deep}, segmentation={segmentation} and "
                f"passes={counts}."
            )
        if symmetric and composed:
            raise InputError(
                "A symmetric Pyramid has one velocity, and a composed one has several; choose symmetric or composed."
            )
        self.ndim, self.in_channels, self.steps, self.reach = ndim, in_channels, steps, reach
        self.passes, self.symmetric, self.composed, self.deep = counts, symmetric, composed, float(deep)
        self.segmentation = float(segmentation) if segments else 0.0
        self.needs = ("labels",) if self.segmentation > 0 else ()
        self.stride = 2 ** len(widths)
        self.encoder = strided_encoder(ndim, in_channels, widths)
        self.context = FeaturePyramid(ndim, widths) if context else None
        matches = [0, *[(2 * reach + 1) ** ndim if reach else 0] * (len(widths) - 1)]
        self.decoder = nn.ModuleList(
            nn.Sequential(convolution(ndim, 2 * w + m + ndim, w), convolution(ndim, w, w))
            for w, m in zip(widths, matches, strict=True)
        )
        self.heads = nn.ModuleList(FieldHead(ndim, w) for w in widths)
        taught = widths[:SEGMENTED] if segments else []
        self.segment = nn.ModuleList(SegmentationHead(ndim, w, segments) for w in taught)
        self.segment.requires_grad_(segmentation > 0)

    def forward(self, fixed: Image, moving: Image) -> Transform:
        """Predict a :class:`Velocity`, or a composite of several with ``composed``; see :meth:`Network.forward`."""
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        self.check_weight(weight)
        self.check(fixed, moving)
        images, grid = pad_to_multiple(torch.cat([fixed.data, moving.data]), fixed.grid, self.stride)
        features = run_blocks(self.encoder, images)
        if self.context is not None:
            features = self.context(features)
        found: Transform | None = None
        known = features[-1].new_zeros(len(fixed.data), self.ndim, *features[-1].shape[2:], dtype=grid.dtype)
        coarser: list[Transform] = []
        for level in reversed(range(len(features))):
            own = grid.resized(tuple(features[level].shape[2:]))
            for _ in range(self.passes[level]):
                known = resize(known, own.shape)
                update = self._correction(features[level], level, own, found, known)
                if self.composed:
                    found = chain(Velocity(update, own, self.steps), found)
                    known = found.displacement(own)
                else:
                    known = known + update
                    found = Velocity(known, own, self.steps)
            assert found is not None  # noqa: S101 - each level has a pass
            coarser.append(found)
        transform = coarser.pop()
        if not self.training:
            return Prediction(transform)
        kept = _Pass(
            tuple(coarser) if self.deep > 0 else (),
            tuple(features[: len(self.segment)]) if self.segmentation > 0 else (),
        )
        return Prediction(transform, kept)

    def _correction(
        self, both: Tensor, level: int, own: Grid, found: Transform | None, known: FieldTensor
    ) -> FieldTensor:
        """Predict the correction of a level.

        Args:
            both: Features of the fixed and then of the moving images, stacked along the batch.
            level: Index of the level, 0 is the finest.
            own: Grid of the level.
            found: Transform so far; ``None`` is the identity.
            known: Velocity so far on ``own``, mm; with ``composed``, the displacement.

        Returns:
            Velocity on ``own``, mm.
        """
        fixed, moving = both.chunk(2)
        there = self._decoded(level, own, fixed, _warped(moving, own, found), known)
        if not self.symmetric:
            return there
        back = None if found is None else found.inverse()
        return (there - self._decoded(level, own, moving, _warped(fixed, own, back), -known)) / 2

    def _decoded(self, level: int, own: Grid, fixed: Tensor, moving: Tensor, known: FieldTensor) -> FieldTensor:
        """Decode the features of a level to a velocity in mm."""
        parts = [fixed, moving, per_spacing(known, own)]
        if level > 0 and self.reach > 0:
            parts.append(local_correlation(fixed, moving, self.reach))
        field = self.heads[level](self.decoder[level](torch.cat(parts, dim=1)))  # in samples of the level
        return voxels_to_mm(field, own)[0]

    @property
    def has_auxiliary_terms(self) -> bool:
        return self.deep > 0 or self.segmentation > 0

    def auxiliary_terms(
        self, prediction: Prediction, fixed: Image, moving: Image, objective: Objective
    ) -> dict[str, WeightedValue]:
        """Compute the objective of the coarser levels (``deep``) and the segmentation loss (``segmentation``).

        Raises:
            InputError: The network learns from ``segments``, and neither image has labels.
        """
        made: _Pass | None = prediction.auxiliary
        terms: dict[str, WeightedValue] = {}
        if made is not None and made.coarser and self.deep > 0:
            terms["deep"] = WeightedValue(self._scored(fixed, moving, made.coarser, objective), self.deep)
        if made is not None and made.features and self.segmentation > 0:
            terms["segmentation"] = WeightedValue(self._segmented(fixed, moving, made.features), self.segmentation)
        return terms

    def _scored(self, fixed: Image, moving: Image, coarser: Sequence[Transform], objective: Objective) -> Scalar:
        """Compute the mean objective of the coarser levels, each at twice the resolution of its field."""
        losses = []
        for level, found in zip(range(len(coarser), 0, -1), coarser, strict=True):
            shape = tuple(max(1, n // 2**level) for n in fixed.grid.shape)
            losses.append(objective(resize_image(fixed, shape), resize_image(moving, shape), found).total)
        return torch.stack(losses).mean()

    def _segmented(self, fixed: Image, moving: Image, features: Sequence[Tensor]) -> Scalar:
        """Compute the mean segmentation loss over the levels and over the images that have labels."""
        losses = []
        for side, image in enumerate((fixed, moving)):
            if image.labels is None:
                continue
            labels = pad_to_multiple(image.labels, image.grid, self.stride)[0]
            losses += [head(level.chunk(2)[side], labels) for head, level in zip(self.segment, features, strict=True)]
        if not losses:
            raise InputError(
                "A Pyramid with `segments` learns from labels, but neither image has any; give labels, or set "
                "network.segmentation=0."
            )
        return torch.stack(losses).mean()


@dataclass(frozen=True, eq=False)
class _Pass:
    """Intermediate results for the auxiliary terms.

    Args:
        coarser: Transforms of all levels but the finest, coarse to fine.
        features: Features of the finest levels, fine to coarse.
    """

    coarser: tuple[Transform, ...]
    features: tuple[Tensor, ...]


def _warped(features: Tensor, grid: Grid, by: Transform | None) -> Tensor:
    return features if by is None else sample(features, grid, by.map_grid(grid), padding="border")


@full_precision
def local_correlation(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Compute the local correlation ``mean_c fixed_c(x) moving_c(x + s)`` for each small shift ``s``.

    Args:
        fixed: Features ``(B, C, *grid)``.
        moving: Features ``(B, C, *grid)``; outside the grid they are 0.
        reach: Largest shift along each axis, in samples.

    Returns:
        ``(B, (2 reach + 1)^D, *grid)``, one channel per shift.
    """
    found: Tensor = _Correlation.apply(fixed, moving, reach)
    return found


class _Correlation(torch.autograd.Function):
    """Local correlation that keeps neither its products nor a padded gradient per shift."""

    @staticmethod
    def forward(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
        padded = F.pad(moving, [reach] * 2 * (fixed.ndim - 2))
        return torch.stack([(fixed * padded[window]).mean(1) for window in _windows(fixed.shape, reach)], dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        fixed, moving, ctx.reach = inputs
        ctx.save_for_backward(fixed, moving)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        fixed, moving = ctx.saved_tensors
        padding = [ctx.reach] * 2 * (fixed.ndim - 2)
        padded = F.pad(moving, padding)
        for_fixed, for_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        for window, weight in zip(_windows(fixed.shape, ctx.reach), outer.split(1, dim=1), strict=True):
            for_fixed.addcmul_(padded[window], weight)
            for_padded[window].addcmul_(fixed, weight)
        channels = fixed.shape[1]
        return for_fixed / channels, F.pad(for_padded, [-n for n in padding]) / channels, None


def _windows(shape: torch.Size, reach: int) -> list[tuple[slice, ...]]:
    """Return, per shift, the slices that select the shifted grid from a grid that is padded by ``reach``."""
    shifts = product(range(2 * reach + 1), repeat=len(shape) - 2)
    return [
        (slice(None), slice(None), *[slice(s, s + n) for s, n in zip(shift, shape[2:], strict=True)])
        for shift in shifts
    ]
