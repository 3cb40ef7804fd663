"""Radial functions: Wendland's, with compact support, and those of the thin-plate spline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import InputError

Wendland = Literal["C2", "C4", "C6"]
Radial = Literal["thin-plate", "C2", "C4", "C6"]


def wendland(r: Tensor, smoothness: Wendland = "C2") -> Tensor:
    """Evaluate Wendland's function of ``r``: 1 at 0, 0 for ``r >= 1``, positive definite up to 3-D.

    Args:
        r: Distance in units of the radius, at least 0.
        smoothness: Number of continuous derivatives, ``"C2"``, ``"C4"`` or ``"C6"``.

    Raises:
        InputError: The smoothness is unknown.

    Source:
        Wendland, Piecewise polynomial, positive definite and compactly supported radial functions of minimal degree,
        Adv. Comput. Math. 1995.
    """
    check_smoothness(smoothness)
    s = (1 - r).clamp(min=0)
    if smoothness == "C2":
        return s**4 * (4 * r + 1)
    if smoothness == "C4":
        return s**6 * (35 * r**2 + 18 * r + 3) / 3
    return s**8 * (32 * r**3 + 25 * r**2 + 8 * r + 1)


def check_smoothness(smoothness: str) -> None:
    """Raise ``InputError`` unless the smoothness is known."""
    if smoothness not in ("C2", "C4", "C6"):
        raise InputError(f"Wendland's functions here are C2, C4 and C6, not {smoothness!r}.")


def radial(kernel: Radial, radius: float, ndim: int) -> Callable[[Tensor], Tensor]:
    """Return a radial function of the squared distance in mm^2.

    ``"thin-plate"`` minimizes the bending energy: ``r^2 log r`` in 2-D, ``-r`` in 3-D.
    """
    if kernel != "thin-plate":
        return lambda square: wendland(root(square) / radius, kernel)
    if ndim == 2:
        return lambda square: 0.5 * torch.xlogy(square, square.clamp(min=torch.finfo(square.dtype).tiny))
    return lambda square: -root(square)


def root(square: Tensor) -> Tensor:
    """Compute the square root, with a gradient of 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
