"""Full precision under autocast, where half precision fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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


class FullPrecisionOfSmall(TorchFunctionMode):
    """Compute convolutions of images smaller than their kernel without autocast on CPUs.

    With oneDNN in torch 2.13 and AVX-512, the gradient of their weights in bfloat16 contains uninitialized memory, so
    it is sometimes infinite; kernels of size 7 even overwrote other memory. The deepest levels of a network on small
    images are affected. Other convolutions and other devices are left unchanged.
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


def small_in_full_precision() -> AbstractContextManager[Any]:
    """Return :class:`FullPrecisionOfSmall` where it changes something: under autocast on a CPU."""
    return FullPrecisionOfSmall() if torch.is_autocast_enabled("cpu") else nullcontext()
