"""Where to begin: centers, moments, and rotations that are tried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.iterative import LinearStage, at_level
from learnreg.optimization.moments import center_of_mass, mass_moments
from learnreg.optimization.stage import Stage, StageResult, compose_found
from learnreg.transforms import Affine, Displacement, Transform, align_centers, spline_through_landmarks
from learnreg.typing import StepCallback


class CenterOfView(Stage):
    """Translation that matches the middles of the fields of view: what ITK calls geometry."""

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        if initial is None:
            return StageResult(align_centers(fixed.grid, moving.grid))
        middle = fixed.grid.center
        target = initial.inverse()(moving.grid.center.unsqueeze(1)).squeeze(1)
        return StageResult(Affine.translation(target - middle))


class CenterOfMass(Stage):
    """Translation that matches the intensity centroids; of the masks where there are any."""

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        target, source = center_of_mass(fixed), center_of_mass(moving)
        if initial is not None:
            source = initial.inverse()(source.unsqueeze(1)).squeeze(1)
        return StageResult(Affine.translation(source - target))


class LandmarkStart(Stage):
    """A spline through the landmarks of both images; nothing for images without.

    Args:
        factor: Spacing of the samples of the spline in units of the finest voxel side.
        smoothing: See :func:`learnreg.transforms.spline_through_landmarks`.
    """

    def __init__(self, *, factor: float = 4.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.factor, self.smoothing = float(factor), float(smoothing)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        if fixed.landmarks is None or moving.landmarks is None:
            return StageResult(Affine.identity(fixed.ndim, dtype=fixed.grid.dtype).to(fixed.data.device))
        marked = ~(fixed.landmarks + moving.landmarks).isnan().any(-1)[0]
        source, target = fixed.landmarks[:, marked], moving.landmarks[:, marked]
        if initial is not None:
            target = initial.inverse()(target)
        control = fixed.grid.coarsened(self.factor, smallest=4)
        spline = spline_through_landmarks(source, target, smoothing=self.smoothing)
        return StageResult(Displacement(spline.displacement(control), control))


class RotationSearch(Stage):
    """Several starts: rotations about the fixed centroid, the most promising each followed by a rigid descent.

    What ends lowest is taken if it clearly beats the descent from no turn; else nothing is turned, since at a
    coarse resolution the objectives of images that need no turn are nearly the same.

    Args:
        objective: What ranks them, at a coarse resolution.
        angles: Degrees about each axis, in all combinations; 0 is always among them.
        factor: Spacing in units of the finest voxel side.
        starts: How many turns are followed, beside none at all.
        steps: Of each descent.
        margin: A turn must be lower than no turn by this share of its objective.
    """

    def __init__(
        self,
        objective: Objective,
        angles: Sequence[float] = (-30, 0, 30),
        *,
        factor: float = 4.0,
        starts: int = 3,
        steps: int = 20,
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        self.objective, self.angles, self.factor = objective, tuple(float(a) for a in angles), float(factor)
        self.starts, self.margin = int(starts), float(margin)
        self.descent = LinearStage(
            objective, "rigid", factors=(1,), iterations=(steps,), learning_rate=0.5, tolerance=0.0
        )

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        coarse = at_level(fixed, self.factor), at_level(moving, self.factor)
        center = center_of_mass(fixed)[:1]
        tried = sorted({0.0, *self.angles}, key=abs)
        turns = product(tried, repeat=1 if fixed.ndim == 2 else 3)
        unturned, *turned = [about(rotation([math.radians(a) for a in turn], fixed.ndim), center) for turn in turns]
        values = totals(self.objective, turned, *coarse, initial)
        promising = sorted(range(len(turned)), key=values.__getitem__)[: self.starts]
        followed = [self.follow(start, *coarse, initial) for start in (unturned, *(turned[k] for k in promising))]
        values = totals(self.objective, followed, *coarse, initial)
        lowest = values.index(min(values))
        clear = values[lowest] < values[0] - self.margin * abs(values[0])
        return StageResult(followed[lowest] if clear else unturned)

    def follow(self, start: Affine, fixed: Image, moving: Image, initial: Transform | None) -> Affine:
        """The rigid map that the descent comes to from one start."""
        found = compose_found(self.descent(fixed, moving, compose_found(start, initial)).transform, start)
        assert isinstance(found, Affine)  # noqa: S101 - both are
        return found


def totals(
    objective: Objective, found: Sequence[Affine], fixed: Image, moving: Image, initial: Transform | None
) -> list[float]:
    """The objective of each candidate."""
    score = objective.prepare(fixed, moving, initial)
    with torch.no_grad():
        return [float(score(candidate).total) for candidate in found]


class Moments(Stage):
    """Matches centroids and principal axes of the intensities, if that is better than the centroids alone.

    The axes have no sign: all rotations that match them are tried.

    Args:
        objective: What ranks them, at a coarse resolution.
        factor: Spacing in units of the finest voxel side.
    """

    def __init__(self, objective: Objective, *, factor: float = 4.0) -> None:
        super().__init__()
        self.objective, self.factor = objective, float(factor)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        shift = CenterOfMass()(fixed, moving, initial).transform
        assert isinstance(shift, Affine)  # noqa: S101 - it says so
        together = compose_found(shift, initial)
        axes_fixed, axes_moving = principal_axes(fixed), principal_axes(moving)
        if isinstance(together, Affine):
            linear = together.matrix[:, : fixed.ndim, : fixed.ndim]
            axes_moving = torch.linalg.solve(linear, axes_moving)
        center = center_of_mass(fixed)[:1]
        candidates = [Affine.identity(fixed.ndim, dtype=center.dtype).to(center.device)]
        for signs in product((1.0, -1.0), repeat=fixed.ndim):
            linear = axes_moving @ torch.diag(axes_fixed.new_tensor(signs)) @ axes_fixed.mT
            left, _, right = torch.linalg.svd(linear)  # the nearest rotation
            turn = left @ right
            if float(torch.linalg.det(turn)) > 0:
                candidates.append(about(turn, center))
        turned = [candidate.then(shift) for candidate in candidates]
        values = totals(self.objective, turned, at_level(fixed, self.factor), at_level(moving, self.factor), initial)
        return StageResult(turned[values.index(min(values))])


def principal_axes(image: Image) -> Tensor:
    """``(1, D, D)`` unit vectors, one a column, from the shortest to the longest extent of the intensities."""
    covariance = mass_moments(image)[1][:1]
    return torch.linalg.eigh(covariance.double()).eigenvectors.to(covariance.dtype)


def rotation(angles: Sequence[float], ndim: int) -> Tensor:
    """``(1, D, D)`` rotation by radians, in 3-D about ``x``, then ``y``, then ``z``."""
    if ndim == 2:
        c, s = math.cos(angles[0]), math.sin(angles[0])
        return torch.tensor([[[c, -s], [s, c]]])
    turn = torch.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        step = torch.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        turn = step @ turn
    return turn.unsqueeze(0)


def about(linear: Tensor, center: Tensor) -> Affine:
    """The linear map about a center that stays."""
    return Affine.about(linear.to(center), torch.zeros_like(center), center)
