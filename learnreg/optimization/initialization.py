"""Initial alignments: centers, moments, and a search over rotations."""

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
    """Translation that matches the centers of the fields of view; ITK calls it geometry."""

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
    """Translation that matches the centroids of the intensities, within the masks if there are any."""

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
    """Spline through the landmarks of both images; the identity for images without landmarks.

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
    """Search over rotations about the fixed centroid; the most promising ones start a rigid descent.

    The result with the lowest objective is used if it clearly beats the descent without a rotation. Otherwise nothing
    is rotated: at a coarse resolution the objectives of images that need no rotation are nearly the same.

    Args:
        objective: Ranks the rotations, at a coarse resolution.
        angles: Degrees about each axis, in all combinations; 0 is always included.
        factor: Spacing in units of the finest voxel side.
        starts: Number of rotations that start a descent, besides none.
        steps: Iterations of each descent.
        margin: A rotation must lower the objective by this share.
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
        """Return the rigid map to which the descent from a start converges."""
        found = compose_found(self.descent(fixed, moving, compose_found(start, initial)).transform, start)
        assert isinstance(found, Affine)  # noqa: S101 - both are
        return found


def totals(
    objective: Objective, found: Sequence[Affine], fixed: Image, moving: Image, initial: Transform | None
) -> list[float]:
    """Return the objective of each candidate."""
    score = objective.prepare(fixed, moving, initial)
    with torch.no_grad():
        return [float(score(candidate).total) for candidate in found]


class Moments(Stage):
    """Match centroids and principal axes of the intensities, if that is better than the centroids alone.

    The sign of an axis is ambiguous, so all rotations that match the axes are tried.

    Args:
        objective: Ranks the rotations, at a coarse resolution.
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
    """Return the unit vectors of the principal axes as columns, from the shortest to the longest, ``(1, D, D)``."""
    covariance = mass_moments(image)[1][:1]
    return torch.linalg.eigh(covariance.double()).eigenvectors.to(covariance.dtype)


def rotation(angles: Sequence[float], ndim: int) -> Tensor:
    """Return a rotation by radians, ``(1, D, D)``; in 3-D about ``x``, then ``y``, then ``z``."""
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
    """Return the linear map that keeps a center."""
    return Affine.about(linear.to(center), torch.zeros_like(center), center)
