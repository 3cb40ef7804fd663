"""Optimizers for one pair: Adam, steps of fields in mm, and a line search."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import InputError

Closure = Callable[[], Tensor]


class Eager(torch.optim.Optimizer):
    """Base of the optimizers of one pair.

    Those of torch load its compiler when they are made, which takes longer than many registrations. These do not.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch does."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as torch does."""
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def graded(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Yield the group, the parameter and the gradient of each parameter that has one."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, parameter.grad


class Adam(Eager):
    """Adam, step for step that of torch.

    Args:
        params: Tensors of any shape.
        lr: Step size.
        betas: Decay rates of the first and second moments.
        eps: Added to the root of the second moment.

    Source:
        Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015, algorithm 1.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> optimizer = Adam([x], lr=0.5)
        >>> x.square().sum().backward()
        >>> optimizer.step()
        >>> x.detach()  # a step of lr, whatever the size of the gradient
        tensor([2.5000])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group, parameter, gradient in self.graded():
            (first, second), state = group["betas"], self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (state["square"].sqrt() / (1 - second ** state["step"]) ** 0.5).add_(group["eps"])
            parameter.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - first ** state["step"]))
        return loss


class VectorAdam(Eager):
    """Adam with one second moment per vector.

    Adam scales each component of a gradient, so its steps favor the axes of the grid and depend on the grid's
    orientation. Here all components of a vector have the same scale: a step has the direction of the averaged gradient,
    and no vector moves much farther than ``lr``.

    Args:
        params: Fields ``(B, D, *grid)``. In other tensors, the second axis holds the components of a vector; the
            elements of a 1-D tensor are scaled separately.
        lr: Step size, mm per iteration.
        betas: Decay rates of the first and second moments.
        eps: Added to the root of the second moment, as a share of its mean over the field.

    Source:
        Ling et al., VectorAdam for rotation equivariant geometry optimization, NeurIPS 2022; the moments of a warp in
        Jena et al., FireANTs, 2024.

    Example:
        >>> field = torch.zeros(1, 2, 4, 4, requires_grad=True)
        >>> optimizer = VectorAdam([field], lr=0.5)
        >>> (field * torch.tensor([3.0, -4.0]).reshape(1, 2, 1, 1)).sum().backward()
        >>> optimizer.step()
        >>> field.detach()[0, :, 0, 0].round(decimals=2)  # 0.5 mm against the gradient (3, -4)
        tensor([-0.3000,  0.4000])
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.5, *, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group, parameter, gradient in self.graded():
            (first, second), state = group["betas"], self.state[parameter]
            square = gradient.square().sum(1, keepdim=True) if gradient.ndim > 1 else gradient.square()
            if not state:
                state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(square))
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].lerp_(square, 1 - second)
            size = (state["square"] / (1 - second ** state["step"])).sqrt()
            size = size + group["eps"] * size.mean() + torch.finfo(size.dtype).tiny
            parameter.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - first ** state["step"]))
        return loss


class LargestStep(Eager):
    """Gradient descent whose steps are scaled so that their longest vector is ``lr``, as in greedy and ANTs.

    Args:
        params: Fields ``(B, D, *grid)``; each is scaled separately.
        lr: Length of the longest vector, mm.

    Example:
        >>> field = torch.zeros(1, 2, 4, 4, requires_grad=True)
        >>> optimizer = LargestStep([field], lr=0.5)
        >>> (field * torch.rand(1, 2, 4, 4)).sum().backward()
        >>> optimizer.step()
        >>> round(float(field.detach().norm(dim=1).max()), 3)
        0.5
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.5) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = _evaluated(closure)
        for group, parameter, gradient in self.graded():
            parameter.sub_(group["lr"] * gradient / _longest(gradient))
        return loss


class LineSearch(Eager):
    """Gradient descent with a backtracking line search.

    Each iteration halves its step until the objective decreases enough (Armijo's rule). The next iteration starts with
    twice that step. If no step decreases the objective enough, the parameters stay as they are.

    Args:
        params: Tensors, as one parameter group.
        lr: Length of the longest vector of the first step, mm.
        decrease: Sufficient decrease, as a share of the decrease that the gradient predicts.
        halvings: Maximum number of steps to try per iteration.

    Raises:
        InputError: There is more than one group of parameters, or ``step`` is called without a closure.

    Source:
        Nocedal and Wright, Numerical optimization, 2006, algorithm 3.1.

    Example:
        >>> x = torch.tensor([8.0], requires_grad=True)
        >>> optimizer = LineSearch([x], lr=1.0)
        >>> def closure():
        ...     loss = x.square().sum()
        ...     if torch.is_grad_enabled():
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...     return loss
        >>> for _ in range(4):
        ...     loss = optimizer.step(closure)
        >>> x.detach()
        tensor([0.])
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.5, *, decrease: float = 1e-4, halvings: int = 8) -> None:
        super().__init__(params, {"lr": lr, "decrease": decrease, "halvings": halvings})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Set the group of parameters; torch calls it when the optimizer is made.

        Raises:
            InputError: There is a group already.
        """
        if self.param_groups:
            raise InputError(
                "LineSearch takes one group of parameters, since all share one step; give all parameters in one list."
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        if closure is None:
            raise InputError(
                "LineSearch.step needs a closure that evaluates the objective, got None; use step(closure), or "
                "descend()."
            )
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
    """Return the loss of the closure, with its gradient; ``None`` without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _longest(gradient: Tensor) -> Tensor:
    """Return the length of the longest vector of ``(B, D, *grid)``."""
    size = gradient.norm(dim=1) if gradient.ndim > 1 else gradient.abs()
    return size.max().clamp(min=torch.finfo(gradient.dtype).tiny)
