"""Run the blocks of a network in another way: compiled, or computed again for the gradient instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import _pop_mode_temporarily
from torch.utils.checkpoint import checkpoint

from learnreg.errors import InputError
from learnreg.numerics import SmallConvolutions

RECOMPILED = 256
"""Number of variants of one ``forward`` that are compiled: per block, with and without gradient, per size."""


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: its outermost sequences of layers with weights, from tensors to tensors.

    Args:
        network: Any network.

    Raises:
        InputError: It has none.

    Example:
        >>> from learnreg.networks import UNet
        >>> len(blocks_of(UNet(2, (4, 8))))  # two of the encoder, one of the decoder
        3
    """
    found = list(_blocks(network))
    if not found:
        raise InputError(
            f"{type(network).__name__} has no blocks, which are torch.nn.Sequential with weights; build it from them, "
            "or set compile=false and gradient_checkpointing=false."
        )
    return found


def _blocks(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [module] if next(module.parameters(), None) is not None else []
    return [block for child in module.children() for block in _blocks(child)]


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the blocks of a network by ``torch.compile``, when they run for the first time.

    The names of the weights stay, so checkpoints are the same as without.

    Args:
        network: Network; its blocks are changed.
        backend: A backend of ``torch.compile``.

    Raises:
        InputError: The network has no blocks, or there is no such backend.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = UNet(2, (4,))
        >>> compile_blocks(network, backend="eager")
        >>> list(network.state_dict()) == list(UNet(2, (4,)).state_dict())
        True
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise InputError(f"torch.compile has no backend {backend!r}; choose from {torch.compiler.list_backends()}.")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILED)
    for block in blocks_of(network):
        # nn.Sequential.compile() is skipped silently, and torch.compile(block) renames the weights.
        # Blocks share their code; without dynamic=False, a second one would be compiled for any size, which is slower.
        _replace_forward(block, _without_mode(torch.compile(_forward_of(block), backend=backend, dynamic=False)))


def _without_mode(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Leave :class:`SmallConvolutions`, under which nothing is compiled, unless autocast needs it."""

    def run(block: nn.Module, *inputs: Any) -> Any:
        needed = torch.is_autocast_enabled("cpu") or not torch._C._len_torch_function_stack()
        with nullcontext() if needed else _pop_mode_temporarily():
            return forward(block, *inputs)

    return run


def check_compiler(device: torch.device) -> None:
    """Check that ``torch.compile`` works on a device: on a CPU it needs a C++ compiler, on a GPU Triton.

    Args:
        device: Device of the training.

    Raises:
        InputError: It does not work; the message has the reason.
    """
    try:
        torch.compile(lambda values: values.square() + 1)(torch.zeros(3, device=device))
    except Exception as error:  # whatever a compiler that is not there can raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"compile=true needs a C++ compiler such as g++ on a CPU, and Triton on a GPU: {reason} Install it, or set "
            "compile=false."
        ) from error


def recompute_blocks(network: nn.Module) -> None:
    """Keep only the inputs of the blocks of a network for the gradient, and compute the rest again (checkpointing).

    Args:
        network: Network; its blocks are changed.

    Raises:
        InputError: The network has no blocks.

    Source:
        Chen et al., Training deep nets with sublinear memory cost, 2016.

    Example:
        >>> from learnreg.networks import UNet
        >>> network = UNet(2, (4,))
        >>> recompute_blocks(network)
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> network(image, image).displacement(image.grid).sum().backward()
    """
    for block in blocks_of(network):
        _replace_forward(block, _recomputed(_forward_of(block)))


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(block: nn.Module, *inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(block, *inputs)
        # The second computation comes after the pass, whose context has the weight of a conditioned network.
        context = copy_context()
        return checkpoint(partial(context.run, forward), block, *inputs, use_reentrant=False, context_fn=_contexts)

    return run


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what surrounds the first computation, and the second one in the same precision."""
    return nullcontext(), SmallConvolutions()


def _forward_of(block: nn.Module) -> Callable[..., Any]:
    """Return what computes a block, as a function of the block and its inputs."""
    return block.forward.__func__  # type: ignore[no-any-return, attr-defined]


def _replace_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    block.forward = MethodType(forward, block)  # type: ignore[method-assign] # a method, so that copies have their own
