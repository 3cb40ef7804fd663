"""Optimizers for fields: steps that are vectors in mm, and line search."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import InputError

Closure = Callable[[], Tensor]


class VectorAdam(torch.optim.Optimizer):
    """Adam with one second moment per vector, so that a step has the direction of the gradient.

    Adam per component moves along the axes of the grid, so its steps depend on the grid's orientation. Here all
    components of a vector share one rate, and no vector moves much farther than ``lr``.

    Args:
        params: Fields ``(B, D, *grid)``; other tensors are scaled by the norm over their second axis.
        lr: mm per iteration.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment, as a share of its mean.

    Source:
        Ling et al., VectorAdam for rotation equivariant geometry optimization, NeurIPS 2022; the moments of a warp in
        Jena et al., FireANTs, 2024.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.5, *, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                gradient = parameter.grad
                square = gradient.square().sum(1, keepdim=True) if gradient.ndim > 1 else gradient.square()
                if not state:
                    state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(square))
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].lerp_(square, 1 - second)
                size = (state["square"] / (1 - second ** state["step"])).sqrt()
                size = size + group["eps"] * size.mean() + torch.finfo(size.dtype).tiny
                rate = group["lr"] / (1 - first ** state["step"])
                parameter.addcdiv_(state["mean"], size, value=-rate)
        return loss


class LargestStep(torch.optim.Optimizer):
    """Gradient descent with steps whose longest vector is ``lr``, as in greedy and ANTs.

    Args:
        params: Fields ``(B, D, *grid)``.
        lr: mm.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.5) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad / _longest(parameter.grad))
        return loss


class LineSearch(torch.optim.Optimizer):
    """Gradient descent with a backtracking line search.

    The step is halved until the objective decreases enough (Armijo's rule), and doubled for the next iteration.

    Args:
        params: Tensors.
        lr: Longest vector of the first step, mm.
        decrease: Share of the expected decrease that is sufficient.
        halvings: Maximum number of halvings per step.

    Source:
        Nocedal and Wright, Numerical optimization, 2006, algorithm 3.1.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.5, *, decrease: float = 1e-4, halvings: int = 8) -> None:
        super().__init__(params, {"lr": lr, "decrease": decrease, "halvings": halvings})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        if closure is None:
            raise InputError("LineSearch needs a closure that evaluates the objective; descend() gives one.")
        loss = _evaluated(closure)
        group: dict[str, Any] = self.param_groups[0]
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad.clone() for p in parameters]  # type: ignore[union-attr]
        start = [p.clone() for p in parameters]
        scale = torch.stack([_longest(g) for g in gradients]).max()
        slope = torch.stack([g.square().sum() for g in gradients]).sum() / scale
        length = group["lr"]
        for _ in range(group["halvings"]):
            for parameter, origin, gradient in zip(parameters, start, gradients, strict=True):
                parameter.copy_(origin - length / scale * gradient)
            value = closure()
            assert loss is not None  # noqa: S101 - there is a closure
            if bool(value <= loss - group["decrease"] * length * slope):
                group["lr"] = 2 * length
                return loss
            length = length / 2
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.copy_(origin)
        group["lr"] = length
        return loss


def _evaluated(closure: Closure | None) -> Tensor | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _longest(gradient: Tensor) -> Tensor:
    """Return the length of the longest vector of ``(B, D, *grid)``."""
    size = gradient.norm(dim=1) if gradient.ndim > 1 else gradient.abs()
    return size.max().clamp(min=torch.finfo(gradient.dtype).tiny)
