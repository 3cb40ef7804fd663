"""``Inverse``: the inverse of any transform, found point by point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from learnreg.numerics import full_precision
from learnreg.transforms.base import Transform
from learnreg.typing import PointTensor


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    """``y -> x`` with ``transform(x) = y``, by the fixed point ``x <- x - L^-1 (transform(x) - y)``.

    Args:
        transform: What is inverted; the iteration converges where ``transform - L`` contracts.
        linear: ``L``, ``(1, D, D)``, about the linear part of the transform; ``None`` is the identity.
        iterations: At most so many.
        tolerance: Stops when all points are met within this many mm.
    """

    transform: Transform
    linear: Tensor | None = None
    iterations: int = 100
    tolerance: float = 1e-4

    @full_precision
    def __call__(self, points: PointTensor) -> PointTensor:
        back = None if self.linear is None else torch.linalg.inv(self.linear.double()).to(points.dtype)
        found = points
        for _ in range(self.iterations):
            missed = self.transform(found) - points
            if bool(missed.detach().norm(dim=-1).amax() <= self.tolerance):
                break
            found = found - (missed if back is None else (back @ missed.flatten(1, -2).mT).mT.reshape(missed.shape))
        return found

    def residual(self, points: PointTensor) -> Float[Tensor, "#B *P"]:
        """``|transform(inverse(y)) - y|`` at points ``(B, *P, D)``: ``(B, *P)``, mm."""
        return (self.transform(self(points)) - points).norm(dim=-1)

    def inverse(self) -> Transform:
        return self.transform

    def to(self, *args: object, **kwargs: object) -> Inverse:
        linear = None if self.linear is None else self.linear.to(*args, **kwargs)  # type: ignore[call-overload]
        return Inverse(self.transform.to(*args, **kwargs), linear, self.iterations, self.tolerance)

    def detach(self) -> Inverse:
        linear = None if self.linear is None else self.linear.detach()
        return Inverse(self.transform.detach(), linear, self.iterations, self.tolerance)
