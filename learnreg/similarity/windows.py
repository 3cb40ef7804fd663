"""Averages in a window around each voxel, over the voxels of a mask."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.kernels import windows
from learnreg.kernels.compiled import apply, fused, run
from learnreg.numerics import full_precision
from learnreg.separable import apply_separable, box_matrix, gaussian_matrix
from learnreg.similarity.masking import standardization, standardized
from learnreg.typing import FeatureTensor, MaskTensor

Kernel = Literal["box", "gaussian"]


class LocalAverage:
    """Mean in a window; at the border the window is cropped.

    Args:
        like: ``(B, C, *grid)``, of the shape and type of the values to average.
        window: Width of the box in voxels, odd. ``"gaussian"`` has the variance of that box.
        mask: ``(B, 1, *grid)`` or ``(B, C, *grid)``, weights; ``None`` counts every voxel.
        kernel: ``"box"`` or ``"gaussian"``.
        stride: Compute every ``stride``-th window along each axis.

    Raises:
        InputError: ``window`` is even or below 3, the kernel is unknown, or the stride is below 1.
    """

    def __init__(
        self,
        like: FeatureTensor,
        window: int,
        mask: MaskTensor | FeatureTensor | None = None,
        kernel: Kernel = "box",
        stride: int = 1,
    ) -> None:
        if stride < 1:
            raise InputError(f"A local similarity needs a stride of at least 1, got {stride}.")
        if window < 3 or window % 2 == 0:
            raise InputError(f"A local similarity needs an odd window of at least 3 voxels, got {window}.")
        if kernel not in ("box", "gaussian"):
            raise InputError(f"Unknown window {kernel!r}; choose box or gaussian.")
        self.window, self.kernel, self.stride = window, kernel, stride
        self._like = like.detach()[:0, 0]
        self.mask = None if mask is None else mask.to(like.dtype)
        self.share = None if self.mask is None else apply_separable(self.mask, self.matrices).clamp(min=1e-6)

    @cached_property
    def matrices(self) -> list[Tensor]:
        """One matrix per axis, from the voxels to the windows."""
        sigma = math.sqrt((self.window**2 - 1) / 12)
        made = [
            box_matrix(n, self.window, self._like) if self.kernel == "box" else gaussian_matrix(n, sigma, self._like)
            for n in self._like.shape[1:]
        ]
        return [matrix[(len(matrix) - 1) % self.stride // 2 :: self.stride] for matrix in made]

    def __call__(self, values: Tensor) -> Tensor:
        if self.mask is None or self.share is None:
            return apply_separable(values, self.matrices)
        return apply_separable(values * self.mask, self.matrices) / self.share

    def is_fused(self, *images: Tensor) -> bool:
        """Return whether the kernel of :mod:`learnreg.kernels.windows` computes the products."""
        return self.kernel == "box" and fused(*images, self.mask)

    def products(self, x: Tensor, y: Tensor, *, standardizing: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the means of ``x``, ``x^2`` and ``x y`` without keeping anything of full size for the gradient.

        Args:
            x: ``(B, C, *grid)``.
            y: ``(B, C, *grid)``.
            standardizing: Use :func:`learnreg.similarity.masking.standardized` ``x`` in place of ``x``, without
                computing it as a whole.
        """
        first, second, third = self.sums(x, y, standardizing=standardizing).split(x.shape[1], dim=1)
        if self.share is None:
            return first, second, third
        return first / self.share, second / self.share, third / self.share

    def sums(self, x: Tensor, y: Tensor, *, standardizing: bool = False) -> Tensor:
        """Compute :meth:`products`, ``(B, 3 C, *windows)``, before they are divided by ``share``."""
        center, scale = standardization(x.detach(), self.mask) if standardizing else (None, None)
        sums: Tensor = apply(_Products, x, y, self.mask, center, scale, self)
        return sums


class _Products(torch.autograd.Function):
    """Window means of ``x``, ``x^2`` and ``x y`` times the mask; only the arguments are kept for the gradient."""

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, mask: Tensor | None, center: Tensor | None, scale: Tensor | None, average: LocalAverage
    ) -> Tensor:
        if average.is_fused(x, y):
            return windows.product_means(x, y, mask, center, scale, average.window, average.stride)
        return _product_means(x, y, mask, average, standardizing=center is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.average = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y, mask, center, scale = ctx.saved_tensors
        average = ctx.average
        if average.is_fused(x, y):
            settings = {"width": average.window, "stride": average.stride, "y_needed": ctx.needs_input_grad[1]}
            gradients = partial(windows.product_gradients, **settings)
            return *run(gradients, x, y, mask, center, scale, outer), None, None, None, None
        means = partial(_product_means, mask=mask, average=average, standardizing=center is not None)
        pull_back = torch.func.vjp(means, x, y)[1]
        return *pull_back(outer), None, None, None, None


def _product_means(x: Tensor, y: Tensor, mask: Tensor | None, average: LocalAverage, standardizing: bool) -> Tensor:
    """The reference of :func:`learnreg.kernels.windows.product_means`."""
    a = standardized(x, mask) if standardizing else x
    products = [a, a * a, a * y]
    return apply_separable(torch.cat([p if mask is None else p * mask for p in products], dim=1), average.matrices)


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
