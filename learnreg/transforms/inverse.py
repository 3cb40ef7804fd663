"""``Inverse``: the inverse of any transform, computed point by point."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.transforms.affine import linear_through_landmarks
from learnreg.transforms.base import Transform
from learnreg.transforms.composite import Composite, chain
from learnreg.transforms.displacement import Displacement, warn_of_residual
from learnreg.typing import PointTensor

BLOCK = 2**18  # points that are solved at once, which bounds the memory
STUCK = 1e-3  # rate of a point that no step brings closer, as in a fold


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    """Inverse of a transform.

    ``y -> x`` with ``transform(x) = y``, by the iteration ``x <- x - r L^-1 (transform(x) - y)``. The rate ``r`` of a
    point is halved where a step does not bring it closer, as where the transform expands more than twofold.

    Nothing is resampled, and :meth:`residual` measures the error at any point.

    Args:
        transform: The transform to invert; it must not fold.
        linear: ``L``, ``(1, D, D)``, an approximation of the linear part; ``None`` is the identity.
        iterations: Maximum number of iterations; a warning tells if the error is larger than 0.1 mm after them.
        tolerance: Stop when the error is at most this value at all points, mm.
    """

    transform: Transform
    linear: Tensor | None = None
    iterations: int = 100
    tolerance: float = 1e-4

    @property
    def ndim(self) -> int:
        return self.transform.ndim

    @full_precision
    def __call__(self, points: PointTensor) -> PointTensor:
        solved = [self._solved(part) for part in points.flatten(1, -2).split(BLOCK, 1)]
        residual = max((size for _, size in solved), default=0.0)
        if not residual <= self.tolerance:
            warn_of_residual(residual, 1.0)
        return torch.cat([found for found, _ in solved], 1).unflatten(1, points.shape[1:-1])

    def _solved(self, targets: PointTensor) -> tuple[PointTensor, float]:
        """Return the points that are mapped to ``targets``, ``(B, P, D)``, and the largest error, mm."""
        missed = self.transform(targets) - targets
        targets = targets.expand_as(missed)
        found, size = targets, missed.detach().norm(dim=-1, keepdim=True)
        rate = torch.ones_like(size)
        for _ in range(self.iterations):
            own = (size > self.tolerance) & (rate > STUCK)
            left = own.any(0)[:, 0].nonzero()[:, 0]
            if left.numel() == 0:
                break
            now, back = found[:, left], self._linear_inverse(missed[:, left])
            trial = now - rate[:, left] * back
            off = self.transform(trial) - targets[:, left]
            length = off.detach().norm(dim=-1, keepdim=True)
            closer = own[:, left] & (length < size[:, left])
            found = found.index_copy(1, left, torch.where(closer, trial, now))
            missed = missed.index_copy(1, left, torch.where(closer, off, missed[:, left]))
            size = size.index_copy(1, left, torch.where(closer, length, size[:, left]))
            step = rate[:, left]
            step = torch.where(closer, (1.5 * step).clamp(max=1), torch.where(own[:, left], 0.5 * step, step))
            rate = rate.index_copy(1, left, step)
        return found, float(size.amax())

    def _linear_inverse(self, vectors: PointTensor) -> PointTensor:
        if self.linear is None:
            return vectors
        back = torch.linalg.inv(self.linear.double()).to(vectors.dtype)
        return (back @ vectors.mT).mT

    def residual(self, points: PointTensor) -> Float[Tensor, "#B *P"]:
        """Return ``|transform(inverse(y)) - y|`` at points ``(B, *P, D)``, ``(B, *P)``, mm."""
        return (self.transform(self(points)) - points).norm(dim=-1)

    def inverse(self) -> Transform:
        return self.transform

    def to(self, *args: object, **kwargs: object) -> Inverse:
        linear = None if self.linear is None else self.linear.to(*args, **kwargs)  # type: ignore[call-overload]
        return Inverse(self.transform.to(*args, **kwargs), linear, self.iterations, self.tolerance)

    def detach(self) -> Inverse:
        linear = None if self.linear is None else self.linear.detach()
        return Inverse(self.transform.detach(), linear, self.iterations, self.tolerance)


def inverse_of(transform: Transform) -> Transform:
    """Return an inverse that is as exact as it can be: fields are inverted at each point, not on their grids.

    Args:
        transform: Parts with an exact inverse, such as affine maps and velocities, keep theirs.
    """
    parts = transform.transforms if isinstance(transform, Composite) else (transform,)
    return chain(*(_pointwise(part) for part in reversed(parts)))


def _pointwise(part: Transform) -> Transform:
    if not isinstance(part, Displacement):
        return part.inverse()
    points = part.grid.resized([min(n, 12) for n in part.grid.shape]).points.flatten(1, -2)
    linear = linear_through_landmarks(points.double(), part(points).double()).matrix[:, :-1, :-1]
    return Inverse(part, linear.to(points.dtype))


@dataclass(frozen=True)
class Residual:
    """How far points end from where they began, after a transform and its inverse.

    Args:
        mean: mm.
        greatest: mm.
        share: Of the points that were counted.
    """

    mean: float
    greatest: float
    share: float


@torch.no_grad()
def inverse_residual(forward: Transform, inverse: Transform, grid: Grid, *, samples: int = 2**16) -> Residual:
    """Measure ``|forward(inverse(y)) - y|`` at samples of the moving image.

    Args:
        forward: Fixed to moving.
        inverse: Moving to fixed.
        grid: Of the moving image; samples that leave the fields of ``forward`` do not count.
        samples: Number of samples, about.
    """
    step = max(1, round((prod(grid.shape) / samples) ** (1 / grid.ndim)))
    points = grid.points[(slice(None), *[slice(None, None, step)] * grid.ndim)].flatten(1, -2)
    back = inverse(points)
    counted = torch.ones_like(back[..., 0], dtype=torch.bool)
    for _, own in forward.fields():
        counted &= (own.to(back.dtype).to_normalized(back).abs() <= 1).all(-1)
    distance = (forward(back) - points).norm(dim=-1)[counted]
    if distance.numel() == 0:
        return Residual(0.0, 0.0, 0.0)
    return Residual(float(distance.mean()), float(distance.max()), float(counted.double().mean()))
