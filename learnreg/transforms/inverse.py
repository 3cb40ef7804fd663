"""``Inverse``: the inverse of any transform, computed point by point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.numerics import full_precision
from learnreg.transforms.base import Transform
from learnreg.transforms.displacement import warn_of_residual
from learnreg.typing import PointTensor


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    """Inverse of a transform.

    ``y -> x`` with ``transform(x) = y``, by the fixed point ``x <- x - L^-1 (transform(x) - y)``.

    Nothing is resampled, and :meth:`residual` measures the error at any point.

    Args:
        transform: The transform to invert; the iteration converges where ``transform - L`` is a contraction.
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
        back = None if self.linear is None else torch.linalg.inv(self.linear.double()).to(points.dtype)
        found = points
        for _ in range(self.iterations):
            missed = self.transform(found) - points
            if bool(missed.detach().norm(dim=-1).amax() <= self.tolerance):
                break
            found = found - (missed if back is None else (back @ missed.flatten(1, -2).mT).mT.reshape(missed.shape))
        else:
            warn_of_residual(float(missed.detach().norm(dim=-1).amax()), 1.0)
        return found

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
