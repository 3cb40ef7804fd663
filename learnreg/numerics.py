"""Full precision under autocast, where half precision fails."""

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
    """Run ``function`` without autocast, its floating-point arguments in at least float32.

    Sums over millions of voxels and differences of squares mean nothing in half precision.
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


class FullPrecisionOfSmall(TorchFunctionMode):
    """Within it, convolutions of images smaller than their kernel are computed without autocast on CPUs.

    There the gradient of their weights in bfloat16 holds memory that nobody wrote, so now and then an infinite number,
    and with kernels of 7 memory of others was overwritten (oneDNN in torch 2.13, AVX-512). The deepest levels of a
    network on small images are such. Other convolutions and other devices are left alone.
    """

    FUNCTIONS = frozenset((F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d))

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.FUNCTIONS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        values = args[0] if args else kwargs["input"]
        kernel = (args[1] if len(args) > 1 else kwargs["weight"]).shape[2:]
        small = any(n < k for n, k in zip(values.shape[-len(kernel) :], kernel, strict=True))
        if small and values.device.type == "cpu":
            return full_precision(func)(*args, **kwargs)
        return func(*args, **kwargs)
