"""Regularity of a deformation: folding, smoothness, inverse consistency."""

from __future__ import annotations

from torch import Tensor

from learnreg.errors import InputError
from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor, ScalarTensor


def folding_fraction(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute the share of voxels whose Jacobian determinant is at most 0.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled.

    Returns:
        ``(B,)`` in [0, 1], lower is better; 0 for a diffeomorphism.

    Example:
        >>> grid = learnreg.Grid.regular((4, 4, 4))
        >>> folding_fraction(-2 * grid.points.movedim(-1, 1), grid)
        tensor([1.])
    """
    return folded_share(jacobian_determinant(displacement, grid))


def folded_share(determinant: ScalarTensor) -> Tensor:
    """Compute :func:`folding_fraction` from a Jacobian determinant ``(B, *grid)``."""
    return (determinant <= 0).flatten(1).to(determinant.dtype).mean(1)


def sd_log_jacobian(displacement: FieldTensor, grid: Grid, *, floor: float = 1e-9) -> Tensor:
    """Compute the standard deviation of the log Jacobian determinant (SDlogJ), a smoothness score.

    ``std_x log max(det(d(x + u)/dx), floor)`` over all voxels of ``grid``.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where ``displacement`` is sampled, the fixed grid.
        floor: Determinants below it, including folds, count as ``floor``.

    Returns:
        ``(B,)``, dimensionless, lower is smoother; 0 for a rigid transform.

    Source:
        Leow et al., Statistical properties of Jacobian maps, IEEE TMI 2007.
    """
    return log_spread(jacobian_determinant(displacement, grid), floor=floor)


def log_spread(determinant: ScalarTensor, *, floor: float = 1e-9) -> Tensor:
    """Compute :func:`sd_log_jacobian` from a Jacobian determinant ``(B, *grid)``."""
    return determinant.clamp(min=floor).log().flatten(1).std(1, correction=0)


def sd_log_jacobian_learn2reg(displacement: FieldTensor, grid: Grid) -> Tensor:
    """Compute SDlogJ as the Learn2Reg challenge does.

    ``std log clip(J + 3, 1e-9, 1e9)``, without 2 voxels at each border.

    It is smaller than :func:`sd_log_jacobian`, about a quarter of it near the identity.

    Args:
        displacement: ``(B, D, *grid.shape)``, mm.
        grid: Where it is sampled; at least 5 samples per axis.

    Returns:
        ``(B,)``, dimensionless, lower is smoother.

    Raises:
        InputError: An axis has fewer than 5 samples.

    Source:
        Hering et al., Learn2Reg, IEEE TMI 2023, and its published evaluation.
    """
    if min(grid.shape) < 5:
        raise InputError(f"Learn2Reg's SDlogJ cuts off 2 voxels on each side; {grid.shape} has too few.")
    return log_spread_learn2reg(jacobian_determinant(displacement, grid))


def log_spread_learn2reg(determinant: ScalarTensor) -> Tensor:
    """Compute :func:`sd_log_jacobian_learn2reg` from a Jacobian determinant ``(B, *grid)``."""
    for axis in range(1, determinant.ndim):
        determinant = determinant.narrow(axis, 2, determinant.shape[axis] - 4)
    return (determinant + 3).clamp(1e-9, 1e9).log().flatten(1).std(1, correction=0)


def inverse_consistency(forward: Transform, backward: Transform, grid: Grid) -> Tensor:
    """Compute the mean distance between ``backward(forward(x))`` and ``x`` over a grid, ``(B,)``, mm."""
    returned = backward(forward.map_grid(grid))
    return (returned - grid.points).norm(dim=-1).flatten(1).mean(1)
