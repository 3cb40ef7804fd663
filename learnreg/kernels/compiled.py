"""Compile loops by Numba when they are first called, keep the code on disk, and divide the voxels among threads.

A kernel is the fast form of an operation for float32 tensors on a CPU. The same operation in plain PyTorch, its
reference, runs on other devices, in other types, and where Numba is missing.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, update_wrapper
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
FEW = 2**15  # voxels; to hand fewer of them to another thread takes longer than to process them
# Sums keep their order, and NaN stays NaN; a product and a sum may become one instruction.
ARITHMETIC = {"contract", "nsz"}


class Compiled:
    """A loop that is compiled when it is first called; other loops that it calls are compiled into it.

    The code is kept beside the source, or in the user's cache folder if that is read-only, or in ``NUMBA_CACHE_DIR``.
    If no folder can be written, each process compiles. A loop must call only loops of its own file: Numba compiles
    again when the file changes, and does not look into others.

    Args:
        loop: A function of contiguous arrays and numbers, in the part of Python that Numba knows.
    """

    def __init__(self, loop: Callable[..., Any]) -> None:
        self.loop = inspect.unwrap(loop)
        update_wrapper(self, self.loop)

    def __call__(self, *args: Any) -> Any:
        try:
            return self.kept(*args)
        except OSError:  # the code could not be written, such as to a full disk; it is in memory now
            return self.kept(*args)

    @cached_property
    def kept(self) -> Callable[..., Any]:
        """The function of Numba, whose code is kept on disk."""
        _announce_compilation()
        try:
            return self._function(cache=True)
        except RuntimeError:  # there is no folder to keep the code in
            return self.inlined

    @cached_property
    def inlined(self) -> Callable[..., Any]:
        """The function of Numba that other loops call."""
        return self._function(cache=False)

    def _function(self, *, cache: bool) -> Callable[..., Any]:
        import numba

        used = {name: self.loop.__globals__.get(name) for name in self.loop.__code__.co_names}
        inner = {name: value.inlined for name, value in used.items() if isinstance(value, Compiled)}
        names = {**self.loop.__globals__, **inner}
        loop = update_wrapper(types.FunctionType(self.loop.__code__, names, self.loop.__name__), self.loop)
        function: Callable[..., Any] = numba.njit(
            loop, cache=cache, nogil=True, fastmath=ARITHMETIC, error_model="numpy"
        )
        return function


def compiled(loop: Callable[..., Any]) -> Compiled:
    """Decorate a loop, see :class:`Compiled`."""
    return Compiled(loop)


@lru_cache(maxsize=1)
def _announce_compilation() -> None:
    """Let this process say in one line that it compiles, at a terminal, else in the log."""
    from numba.core import event

    class Announcement(event.Listener):
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                level = logging.WARNING if sys.stderr and sys.stderr.isatty() else logging.INFO
                logging.getLogger("learnreg").log(level, "Compiling loops for this processor, once: some seconds.")
            self.told = True

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", Announcement())


@lru_cache(maxsize=1)
def available() -> bool:
    """Return whether Numba can be imported and compiles."""
    try:
        import numba
    except ImportError:  # also raised for a NumPy that is too new for it
        return False
    return not numba.config.DISABLE_JIT


def fused(*tensors: Tensor | None) -> bool:
    """Return whether kernels can process these tensors: float32, on a CPU, and not traced."""
    plain = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
    return plain and not torch.compiler.is_compiling() and available()


def fused_without_gradient(*tensors: Tensor) -> bool:
    """Return whether a kernel that has no gradient can process these tensors."""
    return fused(*tensors) and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


class _Run(torch.autograd.Function):
    """Call a function of tensors below ``torch.func``, whose tensors have no memory of their own."""

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Callable[..., Tensor], *tensors: Tensor | None) -> Any:
        """Call the function per item: it knows no further axis."""
        given = list(zip(tensors, in_dims[1:], strict=True))
        items = [[t if t is None or d is None else t.select(d, k) for t, d in given] for k in range(info.batch_size)]
        return torch.stack([run(function, *item) for item in items]), 0


def run(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """Return ``function(*tensors)``, one or more tensors without a gradient; works inside of ``torch.func``."""
    if torch._C._are_functorch_transforms_active():
        return _Run.apply(function, *tensors)
    with torch.no_grad():
        return function(*tensors)


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return ``function.apply(*inputs)``, in a third of the time outside of ``torch.func``.

    torch binds the arguments of ``forward`` to their names at each call of a function that has a ``setup_context``. On
    small images this takes as long as a kernel.
    """
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return function.apply(*inputs)
    return _direct(function).apply(*inputs)


@lru_cache(maxsize=64)
def _direct(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Return the same function in torch's older form, without ``setup_context``."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), members)


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        values: Tensor, score: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]], needed: bool
    ) -> tuple[Tensor, Tensor | None]:
        return score(values, needed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        gradient = output[1]
        ctx.save_for_backward(gradient)
        ctx.set_materialize_grads(False)
        if gradient is not None:
            ctx.mark_non_differentiable(gradient)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        if outer is None:
            return None, None, None
        return gradient * outer.reshape(-1, *[1] * (gradient.ndim - 1)), None, None


def scored(values: Tensor, score: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]) -> Tensor:
    """Return a score of values that is computed together with its gradient, which alone is kept.

    Args:
        values: ``(B, ...)``.
        score: ``(values, needed) -> (score, gradient)``: the score ``()`` or ``(B,)``, and if ``needed`` its gradient.
    """
    needed = values.requires_grad and torch.is_grad_enabled()
    found: Tensor = apply(_Scored, values, score, needed)[0]
    return found


def array(tensor: Tensor) -> Array:
    """Return the values of a tensor as a contiguous array, without a copy where they are contiguous."""
    return tensor.detach().contiguous().numpy()


def optional(weights: Tensor | None) -> Array:
    """Return weights ``(B or 1, C or 1, *grid)`` as an array with three spatial axes; one 1 where there are none."""
    return np.ones((1, 1, 1, 1, 1), np.float32) if weights is None else array(volumes(weights))


def volumes(values: Tensor) -> Tensor:
    """Give ``(B, C, *grid)`` values three spatial axes; loops know no other number of them."""
    return values if values.ndim == 5 else values.unsqueeze(2)


def vectors(field: Tensor) -> Tensor:
    """Give a field ``(B, D, *grid)`` three spatial axes and three components."""
    return field if field.ndim == 5 else torch.nn.functional.pad(field.unsqueeze(2), (0, 0, 0, 0, 0, 0, 0, 1))


def parts(total: int, work: int) -> list[tuple[int, int]]:
    """Divide ``range(total)`` into a part per thread of torch.

    Args:
        total: Number of rows.
        work: Number of voxels in all rows.

    Returns:
        The first row of each part and the one after its last.
    """
    count = max(1, min(torch.get_num_threads(), total, work // FEW))
    ends = [total * k // count for k in range(count + 1)]
    return list(pairwise(ends))


def in_parallel(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call functions at once, the first in this thread; they must not wait for one another."""
    others = [_pool(len(tasks) - 1).submit(task) for task in tasks[1:]]
    return [task() for task in tasks[:1]] + [other.result() for other in others]


_POOLS: list[ThreadPoolExecutor] = []
_LOCK = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of at least so many threads, which all registrations of this process share."""
    with _LOCK:
        if not _POOLS or _POOLS[-1]._max_workers < threads:
            _POOLS.append(ThreadPoolExecutor(threads, thread_name_prefix="learnreg"))
        return _POOLS[-1]


def _forget_pools() -> None:
    """A forked process has none of the threads, and perhaps a lock that nobody will release."""
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
