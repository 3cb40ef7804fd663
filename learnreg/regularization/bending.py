"""Bending energy: the mean squared second derivatives of a field."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.grid import Grid
from learnreg.typing import FieldTensor, Scalar


def bending_loss(field: FieldTensor, grid: Grid) -> Scalar:
    """Mean over the interior of ``sum_ij |d^2 u / dx_i dx_j|^2``, in 1/mm^2 for a field in mm.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled; an axis with fewer than 3 samples does not count.

    Returns:
        A scalar, 0 for any affine displacement.

    Source:
        Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 1999, eq. 8.
    """
    total = field.new_zeros(())
    spacing = grid.spacing.T.flip(0)  # (D, N) in array order
    axes = [axis for axis in range(grid.ndim) if grid.shape[axis] >= 3]
    for axis in axes:
        second = field.diff(n=2, dim=axis + 2) / _columns(spacing[axis] ** 2, field)
        total = total + grid.ndim * second.square().mean()
        for other in axes[axes.index(axis) + 1 :]:
            mixed = field.diff(dim=axis + 2).diff(dim=other + 2) / _columns(spacing[axis] * spacing[other], field)
            total = total + 2 * grid.ndim * mixed.square().mean()
    return total


def _columns(values: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """``(N,)`` shaped to divide a field."""
    return values.reshape(-1, *([1] * (field.ndim - 1)))


class Bending(nn.Module):
    """Second-order smoothness, free for affine maps, see :func:`bending_loss`."""

    def forward(self, field: FieldTensor, grid: Grid) -> Scalar:
        with torch.autocast(field.device.type, enabled=False):
            return bending_loss(field.to(torch.promote_types(field.dtype, torch.float32)), grid)
