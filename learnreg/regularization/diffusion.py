"""Diffusion: the mean squared gradient of a field."""

from __future__ import annotations

import torch
from torch import nn

from learnreg.grid import Grid
from learnreg.typing import FieldTensor, Scalar


def diffusion_loss(field: FieldTensor, grid: Grid) -> Scalar:
    """Mean over the grid of ``|grad u|^2``, dimensionless for a displacement in mm.

    Forward differences over the spacing: the value hardly changes when the field is resampled,
    and it does not depend on the orientation of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.

    Returns:
        A scalar, 0 for a translation.

    Source:
        Fischer and Modersitzki, Fast diffusion registration, 2002.
    """
    total = field.new_zeros(())
    for axis, spacing in enumerate(grid.spacing.T.flip(0)):
        if grid.shape[axis] > 1:
            steps = field.diff(dim=axis + 2).square().flatten(1).sum(1)
            count = field[0, 0].numel() * (grid.shape[axis] - 1) / grid.shape[axis]
            total = total + (steps / (spacing**2 * count)).mean()
    return total


class Diffusion(nn.Module):
    """First-order smoothness, see :func:`diffusion_loss`."""

    def forward(self, field: FieldTensor, grid: Grid) -> Scalar:
        with torch.autocast(field.device.type, enabled=False):
            return diffusion_loss(field.to(torch.promote_types(field.dtype, torch.float32)), grid)
