"""Initial alignments: centers, landmarks, moments, and a search over rotations."""

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
from learnreg.optimization.stage import Stage, StageResult, check_pair, compose_found
from learnreg.transforms import Affine, Displacement, Transform, align_centers, spline_through_landmarks
from learnreg.typing import StepCallback

TILTS = (-30.0, 0.0, 30.0)  # degrees about each axis in 3-D: nobody lies upside down in a scanner without a header
AROUND = tuple(float(angle) for angle in range(-150, 181, 30))  # in 2-D; a descent finds 15 degrees


class CenterOfView(Stage):
    """Stage that aligns the centers of the fields of view by a translation (``GEOMETRY`` in ITK).

    Example:
        >>> fixed = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> moving = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8), origin=(16.5, 6.5)))
        >>> CenterOfView()(fixed, moving).transform(torch.zeros(1, 1, 2))
        tensor([[[20., 10.]]])
    """

    is_start = True

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
    """Stage that aligns the centroids of the intensities by a translation (``MOMENTS`` in ITK).

    Intensities count above the minimum of their image, and within its mask if there is one.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> transform = CenterOfMass()(fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
    """

    is_start = True

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        return StageResult(shift_between(center_of_mass(fixed), center_of_mass(moving), initial))


def shift_between(target: Tensor, source: Tensor, initial: Transform | None) -> Affine:
    """Return the translation that maps points to others, ``(B, D)``, mm, if ``initial`` follows it."""
    if initial is not None:
        source = initial.inverse()(source.unsqueeze(1)).squeeze(1)
    return Affine.translation(source - target)


class LandmarkStart(Stage):
    """Stage that maps the fixed to the moving landmarks by a spline.

    Pairs with a NaN are left out. Images without landmarks get the identity.

    Args:
        factor: Spacing of the samples of the spline, as a multiple of the finest voxel spacing.
        smoothing: See :func:`learnreg.transforms.spline_through_landmarks`.

    Example:
        >>> grid, data = learnreg.Grid.regular((16, 16)), torch.rand(1, 1, 16, 16)
        >>> corners = torch.tensor([[[-5.0, -5.0], [5.0, -5.0], [-5.0, 5.0], [5.0, 5.0]]])
        >>> fixed = learnreg.Image(data, grid, landmarks=corners)
        >>> moving = learnreg.Image(data, grid, landmarks=corners + torch.tensor([2.0, 0.0]))
        >>> transform = LandmarkStart()(fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
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
        check_pair(fixed, moving)
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
    """Stage that searches over rotations about the fixed centroid.

    The rotations with the lowest objectives, and the identity, each start a rigid descent at a coarse resolution. The
    result with the lowest objective is returned if it is clearly lower than that of the descent from the identity.
    Otherwise the identity is returned: at a coarse resolution, images that need no rotation have nearly the same
    objective for several of them.

    Args:
        objective: Objective to rank the rotations and to descend on.
        angles: Angles about each axis, degrees; all combinations are tried, and 0 is always included. ``None`` is -30,
            0 and 30 in 3-D. In 2-D, where sections lie in any direction, it is every 30 degrees all around, and each
            starts a descent: for two stains, the objective before it does not tell which is right.
        factor: Spacing of the coarse resolution, as a multiple of the finest voxel spacing.
        starts: Number of rotations that start a descent, not counting the identity; all do in 2-D without ``angles``.
        steps: Maximum number of iterations of each descent.
        margin: Share by which a rotation must lower the objective.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> x, y = grid.points.unbind(-1)
        >>> fixed = learnreg.Image(torch.exp(-(x**2 / 30 + y**2 / 6))[:, None], grid)
        >>> moving = learnreg.Image(torch.exp(-(y**2 / 30 + x**2 / 6))[:, None], grid)
        >>> search = RotationSearch(learnreg.Objective(learnreg.similarity.MSE()), angles=(90,), factor=1)
        >>> transform = search(fixed, moving).transform
        >>> [round(v) for v in transform(torch.tensor([[[5.0, 0.0]]])).flatten().tolist()]
        [0, 5]
    """

    is_start = True

    def __init__(
        self,
        objective: Objective,
        angles: Sequence[float] | None = None,
        *,
        factor: float = 4.0,
        starts: int = 3,
        steps: int = 20,
        margin: float = 0.1,
    ) -> None:
        super().__init__()
        self.objective, self.factor = objective, float(factor)
        self.angles = None if angles is None else tuple(float(a) for a in angles)
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
        check_pair(fixed, moving)
        coarse = (coarse_enough(fixed, self.factor), coarse_enough(moving, self.factor))
        center = center_of_mass(fixed)[:1]
        usual = AROUND if fixed.ndim == 2 else TILTS
        tried = sorted({0.0, *(usual if self.angles is None else self.angles)}, key=abs)
        turns = product(tried, repeat=1 if fixed.ndim == 2 else 3)
        unturned, *turned = [about(rotation([math.radians(a) for a in turn], fixed.ndim), center) for turn in turns]
        values = totals(self.objective, turned, *coarse, initial)
        starts = len(turned) if self.angles is None and fixed.ndim == 2 else self.starts
        promising = sorted(range(len(turned)), key=values.__getitem__)[:starts]
        followed = [self.follow(start, *coarse, initial) for start in (unturned, *(turned[k] for k in promising))]
        lowest = clearly_lowest(totals(self.objective, followed, *coarse, initial), self.margin)
        return StageResult(followed[lowest] if lowest else unturned)

    def follow(self, start: Affine, fixed: Image, moving: Image, initial: Transform | None) -> Affine:
        """Run the rigid descent from a start.

        Returns:
            The start composed with the rigid map that the descent found.
        """
        found = compose_found(self.descent(fixed, moving, compose_found(start, initial)).transform, start)
        assert isinstance(found, Affine)  # noqa: S101 - both are
        return found


def coarse_enough(image: Image, factor: float) -> Image:
    """Resample to ``factor`` times the finest spacing, but to no fewer samples than a :class:`LinearStage` needs."""
    return at_level(image, factor, smallest=LinearStage.smallest)


def totals(
    objective: Objective, found: Sequence[Affine], fixed: Image, moving: Image, initial: Transform | None
) -> list[float]:
    """Return the objective of each affine map in ``found``, composed with ``initial``."""
    score = objective.prepare(fixed, moving, initial)
    with torch.no_grad():
        return [float(score(candidate).total) for candidate in found]


def clearly_lowest(values: Sequence[float], margin: float) -> int:
    """Return the index of the lowest value if it is lower than the first by a share of that, otherwise 0."""
    lowest = values.index(min(values))
    return lowest if values[lowest] < values[0] - margin * abs(values[0]) else 0


class Moments(Stage):
    """Stage that aligns the centroids and the principal axes of the intensities.

    The direction of a principal axis is ambiguous, so every rotation that aligns the axes is scored by the objective at
    a coarse resolution. The one with the lowest objective is returned if it is clearly lower than that of the
    translation alone; otherwise the translation.

    Args:
        objective: Objective to rank the rotations.
        factor: Spacing of the coarse resolution, as a multiple of the finest voxel spacing.
        margin: Share by which a rotation must lower the objective.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> x, y = grid.points.unbind(-1)
        >>> fixed = learnreg.Image(torch.exp(-(x**2 / 30 + y**2 / 6))[:, None], grid)
        >>> moving = learnreg.Image(torch.exp(-((y - 2) ** 2 / 30 + x**2 / 6))[:, None], grid)
        >>> transform = Moments(learnreg.Objective(learnreg.similarity.MSE()), factor=1)(fixed, moving).transform
        >>> [abs(round(v)) for v in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [0, 2]
    """

    is_start = True

    def __init__(self, objective: Objective, *, factor: float = 4.0, margin: float = 0.0) -> None:
        super().__init__()
        self.objective, self.factor, self.margin = objective, float(factor), float(margin)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        check_pair(fixed, moving)
        (center, spread), (source, other) = mass_moments(fixed), mass_moments(moving)
        shift = shift_between(center, source, initial)
        together = compose_found(shift, initial)
        axes_fixed, axes_moving = principal_axes(spread), principal_axes(other)
        if isinstance(together, Affine):
            linear = together.matrix[:, : fixed.ndim, : fixed.ndim]
            axes_moving = torch.linalg.solve(linear, axes_moving)
        center = center[:1]
        candidates = [Affine.identity(fixed.ndim, dtype=center.dtype).to(center.device)]
        for signs in product((1.0, -1.0), repeat=fixed.ndim):
            linear = axes_moving @ torch.diag(axes_fixed.new_tensor(signs)) @ axes_fixed.mT
            # The axes of an image after an affine `initial` are not orthogonal; the polar factor is the nearest
            # orthogonal matrix. Those with determinant -1 mirror and are left out.
            left, _, right = torch.linalg.svd(linear)
            turn = left @ right
            if float(torch.linalg.det(turn)) > 0:
                candidates.append(about(turn, center))
        turned = [candidate.then(shift) for candidate in candidates]
        coarse = (coarse_enough(fixed, self.factor), coarse_enough(moving, self.factor))
        return StageResult(turned[clearly_lowest(totals(self.objective, turned, *coarse, initial), self.margin)])


def principal_axes(covariance: Tensor) -> Tensor:
    """Return the principal axes of the intensities.

    Args:
        covariance: See :func:`mass_moments`; only that of the first image is used.

    Returns:
        ``(1, D, D)``, unit vectors as columns, by increasing variance along them.
    """
    return torch.linalg.eigh(covariance[:1].double()).eigenvectors.to(covariance.dtype)


def rotation(angles: Sequence[float], ndim: int) -> Tensor:
    """Return the matrix of a rotation.

    Args:
        angles: Radians; one in 2-D, and in 3-D those about ``x``, ``y`` and ``z``, applied in this order.
        ndim: 2 or 3.

    Returns:
        ``(1, D, D)``.
    """
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
    """Return the affine map ``x -> L (x - c) + c`` with the center ``c``."""
    return Affine.about(linear.to(center), torch.zeros_like(center), center)
