"""Distances between landmarks."""

from __future__ import annotations

from torch import Tensor

from learnreg.errors import InputError
from learnreg.transforms import Transform
from learnreg.typing import PointTensor


def target_registration_error(transform: Transform, fixed: PointTensor, moving: PointTensor) -> Tensor:
    """Compute the distance of each mapped fixed landmark to its counterpart (TRE).

    Args:
        transform: Fixed to moving space.
        fixed: ``(B, P, D)``, mm LPS.
        moving: ``(B, P, D)``, mm LPS, in the same order.

    Returns:
        ``(B, P)``, mm, lower is better.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> points = torch.zeros(1, 2, 3)
        >>> target_registration_error(learnreg.Affine.translation([3.0, 4.0, 0.0]), points, points)
        tensor([[5., 5.]])
    """
    if fixed.shape != moving.shape:
        raise InputError(
            f"Landmarks must come in pairs, got {tuple(fixed.shape)} fixed and {tuple(moving.shape)} moving."
        )
    return (transform(fixed) - moving).norm(dim=-1)
