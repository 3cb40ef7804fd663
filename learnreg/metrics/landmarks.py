"""Distances between landmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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


def robustness30(values: Sequence[float], *, lower_is_better: bool = True) -> float:
    """Return the score that the worst 30 % of the cases do not reach, as Learn2Reg's TRE30 and DSC30.

    Args:
        values: A score per case, such as its mean TRE; NaN is left out.
        lower_is_better: ``True`` for TRE and SDlogJ, ``False`` for Dice.

    Returns:
        The 70th percentile if lower is better, else the 30th; NaN without values.

    Source:
        Hering et al., Learn2Reg, IEEE TMI 2023; the quantiles are those of its published evaluation script.

    Example:
        >>> robustness30([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
        8.0
    """
    known = np.asarray([v for v in values if v == v], dtype=np.float64)
    return float(np.quantile(known, 0.7 if lower_is_better else 0.3)) if len(known) else float("nan")
