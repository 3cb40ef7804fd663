"""Averages in a window around each voxel, over the voxels of a mask."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.numerics import full_precision
from learnreg.separable import apply_separable, box_matrix, gaussian_matrix, rows_of, slabs
from learnreg.similarity.masking import count_of, standardization, standardized, through_standardization
from learnreg.typing import MaskTensor

Kernel = Literal["box", "gaussian"]


class LocalAverage:
    """Mean in a window; at the border the window is cropped.

    Args:
        like: ``(B, C, *grid)``, of the shape and type of the values to average.
        window: Width of the box in voxels, odd. ``"gaussian"`` has the variance of that box.
        mask: ``(B, 1, *grid)``, weights; ``None`` counts every voxel.
        kernel: ``"box"`` or ``"gaussian"``.
        stride: Compute every ``stride``-th window along each axis.

    Raises:
        InputError: ``window`` is even or below 3, the kernel is unknown, or the stride is below 1.
    """

    def __init__(
        self,
        like: Tensor,
        window: int,
        mask: Tensor | None = None,
        kernel: Kernel = "box",
        stride: int = 1,
    ) -> None:
        if stride < 1:
            raise InputError(f"A local similarity needs a stride of at least 1, got {stride}.")
        if window < 3 or window % 2 == 0:
            raise InputError(f"A local similarity needs an odd window of at least 3 voxels, got {window}.")
        if kernel not in ("box", "gaussian"):
            raise InputError(f"Unknown window {kernel!r}; choose box or gaussian.")
        sigma = math.sqrt((window**2 - 1) / 12)
        whole = [
            box_matrix(n, window, like) if kernel == "box" else gaussian_matrix(n, sigma, like) for n in like.shape[2:]
        ]
        self.matrices = [matrix[(len(matrix) - 1) % stride // 2 :: stride] for matrix in whole]
        self.mask = None if mask is None else mask.to(like.dtype)
        self.share = None if self.mask is None else apply_separable(self.mask, self.matrices).clamp(min=1e-6)

    def __call__(self, values: Tensor) -> Tensor:
        if self.mask is None or self.share is None:
            return apply_separable(values, self.matrices)
        return apply_separable(values * self.mask, self.matrices) / self.share

    def products(self, x: Tensor, y: Tensor, *, standardizing: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the means of ``x``, ``x^2`` and ``x y`` without keeping anything of full size for the gradient.

        Args:
            x: ``(B, C, *grid)``.
            y: ``(B, C, *grid)``.
            standardizing: Use :func:`learnreg.similarity.masking.standardized` ``x`` in place of ``x``, without
                computing it as a whole.
        """
        center, scale = standardization(x.detach(), self.mask) if standardizing else (None, None)
        means: Tensor = _Products.apply(x, y, self.mask, center, scale, self.matrices)
        first, second, third = means.split(x.shape[1], dim=1)
        if self.share is None:
            return first, second, third
        return first / self.share, second / self.share, third / self.share


class _Products(torch.autograd.Function):
    """Window means of ``x``, ``x^2`` and ``x y`` times a mask, computed slab by slab."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        center: Tensor | None,
        scale: Tensor | None,
        matrices: list[Tensor],
    ) -> Tensor:
        batch, channels, *shape = x.shape
        means = x.new_zeros(batch, 3 * channels, *[len(matrix) for matrix in matrices])
        for rows in slabs(shape, batch, x.device):
            a = _slab(x, rows, center, scale)
            parts = torch.cat([a, a * a, a * y[:, :, rows]], dim=1)
            parts = parts if mask is None else parts * _in_channels(mask[:, :, rows], 3)
            parts = apply_separable(parts, [None, *matrices[1:]])
            first, reach = rows_of(matrices[0].T, rows)
            assert first is not None  # noqa: S101 - there is a matrix per axis
            means[:, :, reach] += apply_separable(parts, [first.T, *[None] * (len(shape) - 1)])
        return means

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.matrices = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, mask, center, scale = ctx.saved_tensors
        for_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for_y = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        batch, channels, *shape = x.shape
        dims = list(range(2, x.ndim))
        total = slope = x.new_zeros(batch, channels, *[1] * len(shape))
        for rows in slabs(shape, batch, x.device):
            first, reach = rows_of(ctx.matrices[0].T, rows)
            back = apply_separable(outer[:, :, reach], [first, *[None] * (len(shape) - 1)])
            back = apply_separable(back, [None, *[matrix.T for matrix in ctx.matrices[1:]]])
            back = back if mask is None else back * _in_channels(mask[:, :, rows], 3)
            one, two, three = back.split(channels, dim=1)
            a = _slab(x, rows, center, scale)
            if for_x is not None:
                part = one + 2 * a * two + y[:, :, rows] * three
                for_x[:, :, rows] = part
                if center is not None:
                    total = total + part.sum(dims, keepdim=True)
                    slope = slope + (part * a).sum(dims, keepdim=True)
            if for_y is not None:
                for_y[:, :, rows] = a * three
        if for_x is not None and center is not None and scale is not None:
            count = count_of(x, mask)
            for rows in slabs(shape, batch, x.device):
                weights = None if mask is None else mask[:, :, rows]
                a = _slab(x, rows, center, scale)
                for_x[:, :, rows] = through_standardization(for_x[:, :, rows], a, scale, weights, total, slope, count)
        return for_x, for_y, None, None, None, None


def _slab(x: Tensor, rows: slice, center: Tensor | None, scale: Tensor | None) -> Tensor:
    return x[:, :, rows] if center is None or scale is None else (x[:, :, rows] - center) * scale


def _in_channels(mask: Tensor, times: int) -> Tensor:
    """Repeat a mask of several channels for each group of channels; a mask of one channel is broadcast."""
    return mask if mask.shape[1] == 1 else mask.repeat(1, times, *[1] * (mask.ndim - 2))


def at_windows(values: Tensor | None, stride: int) -> Tensor | None:
    """Select the voxels where :class:`LocalAverage` of this stride has its windows."""
    if values is None or stride == 1:
        return values
    for axis in range(2, values.ndim):
        n = values.shape[axis]
        values = values.index_select(axis, torch.arange((n - 1) % stride // 2, n, stride, device=values.device))
    return values


@full_precision
def local_moments(
    image: Tensor, mask: MaskTensor | None, window: int, kernel: Kernel, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the standardized image, and its mean and variance in each window."""
    average = LocalAverage(image, window, mask, kernel, stride)
    x = standardized(image, mask)
    mean, square, _ = average.products(x, x)
    return x, mean, (square - mean * mean).clamp(min=0)
