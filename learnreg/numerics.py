"""Computations that are wrong or slow in the way that torch chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without autocast, with its floating-point arguments in at least float32.

    Sums over millions of voxels and differences of squares lose all accuracy in half precision.

    Args:
        function: Any function of tensors.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return run


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value


class SmallConvolutions(TorchFunctionMode):
    """Compute convolutions of small images on CPUs correctly and fast; other ones and other devices are left unchanged.

    Under autocast, images smaller than the kernel are computed in full precision: with oneDNN in torch 2.13 and
    AVX-512, the gradient of their weights in bfloat16 contains uninitialized memory, so it is sometimes infinite;
    kernels of size 7 even overwrote other memory. The deepest levels of a network on small images are affected.

    A single small volume is computed as two halves that overlap: torch leaves batches of one with at most 20480 values
    of the first axes to its own convolution, which takes 3 to 6 times as long as oneDNN with its gradient.

    Example:
        >>> layer, volume = torch.nn.Conv3d(16, 16, 3, padding=1), torch.rand(1, 16, 12, 12, 12)
        >>> with SmallConvolutions():
        ...     fast = layer(volume)
        >>> torch.allclose(fast, layer(volume), atol=1e-5)
        True
    """

    FUNCTIONS = frozenset((F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d))
    SMALL = 20480

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.FUNCTIONS:
            return func(*args, **kwargs)
        values = args[0] if args else kwargs["input"]
        if values.device.type != "cpu":
            return func(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            kernel = (args[1] if len(args) > 1 else kwargs["weight"]).shape[2:]
            small = any(n < k for n, k in zip(values.shape[-len(kernel) :], kernel, strict=True))
            return full_precision(func)(*args, **kwargs) if small else func(*args, **kwargs)
        halves = _in_halves(*args, **kwargs) if func is F.conv3d and self._is_slow(values) else None
        return func(*args, **kwargs) if halves is None else halves

    def _is_slow(self, values: Tensor) -> bool:
        small = values.ndim == 5 and len(values) == 1 and values[0, ..., 0].numel() <= self.SMALL
        return small and values.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _in_halves(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """Convolve one volume as a batch of two halves; ``None`` unless the kernel has 3 samples an axis and no stride."""
    plain = groups == 1 and all(step in (1, (1, 1, 1), [1, 1, 1]) for step in (stride, dilation))
    if not plain or tuple(weight.shape[2:]) != (3, 3, 3) or isinstance(padding, str):
        return None
    before = (padding,) * 3 if isinstance(padding, int) else tuple(padding)
    rows = input.shape[2] + 2 * before[0] - 2
    if rows < 2:
        return None
    half = -(-rows // 2)
    padded = F.pad(input, (0, 0, 0, 0, before[0], before[0]))
    parts = torch.cat([padded[:, :, : half + 2], padded[:, :, rows - half :]])
    first, second = F.conv3d(parts, weight, bias, padding=(0, *before[1:])).split(1)
    return torch.cat([first, second[:, :, 2 * half - rows :]], 2)
