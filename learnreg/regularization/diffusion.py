"""Diffusion: the mean squared gradient of a field."""

from __future__ import annotations

import math
from typing import Any

import torch

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.base import Regularizer
from learnreg.regularization.differences import at_cells, spacing_along
from learnreg.separable import slabs
from learnreg.typing import FieldTensor, Scalar, Tensor


@full_precision
def diffusion_loss(field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
    """Compute the mean over the grid of ``|grad u|^2``, dimensionless for a displacement in mm.

    The differences are divided by the spacing, so the value hardly changes when the field is resampled, and it does not
    depend on the orientation of the grid.

    Args:
        field: ``(B, D, *grid.shape)``, mm, components ``(x, y, z)``.
        grid: Where it is sampled.
        weight: ``(B or 1, 1, *grid.shape)``, local factor; ``None`` is 1.

    Returns:
        A scalar, lower is smoother; 0 for a translation.

    Source:
        Fischer and Modersitzki, Fast diffusion registration, 2002.

    Example:
        >>> grid = learnreg.Grid.regular((6, 6, 6))
        >>> round(float(diffusion_loss(0.1 * grid.points.movedim(-1, 1), grid)), 4)
        0.03
    """
    shares = torch.stack([spacing_along(grid, axis) for axis in range(grid.ndim)]).square().reciprocal().to(field)
    needed = field.requires_grad and torch.is_grad_enabled()
    squares, _ = _SquaredGradient.apply(field, shares, weight, needed)
    mean: Tensor = squares.mean()
    return mean


class _SquaredGradient(torch.autograd.Function):
    """``(B,)`` weighted squares of the differences, with their gradient, which alone is kept."""

    @staticmethod
    def forward(field: Tensor, shares: Tensor, weight: Tensor | None, needed: bool) -> tuple[Tensor, Tensor | None]:
        total = field.new_zeros(len(field))
        gradient = torch.zeros_like(field) if needed else None
        for axis, share in enumerate(shares, start=2):
            n = field.shape[axis]
            cells = [m - (a == axis) for a, m in enumerate(field.shape)]
            if n == 1:
                continue
            scale = (share / math.prod(cells[2:])).reshape(-1, *[1] * (field.ndim - 1))
            local = None if weight is None else at_cells(weight.to(field.dtype), cells)
            for rows in slabs(cells[2:], 3 * len(field), field.device):
                first = slice(rows.start, rows.stop + (axis == 2))
                difference = field[:, :, first].diff(dim=axis)
                pull = difference * scale if local is None else difference * scale * local[:, :, rows]
                total = total + difference.mul_(pull).flatten(1).sum(1)
                if gradient is not None:
                    part = gradient[:, :, first]
                    part.narrow(axis, 1, part.shape[axis] - 1).add_(pull, alpha=2)
                    part.narrow(axis, 0, part.shape[axis] - 1).sub_(pull, alpha=2)
        return total, gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        gradient = output[1]
        ctx.save_for_backward(gradient)
        if gradient is not None:
            ctx.mark_non_differentiable(gradient)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * outer.reshape(-1, *[1] * (gradient.ndim - 1)), None, None, None


class Diffusion(Regularizer):
    """First-order smoothness, see :func:`diffusion_loss`. The usual choice for velocities."""

    def forward(self, field: FieldTensor, grid: Grid, weight: Tensor | None = None) -> Scalar:
        return diffusion_loss(field, grid, weight)
