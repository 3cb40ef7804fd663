"""Gradient descent on an objective over the parameters of one pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.parametrization import Parametrization
from learnreg.transforms import Transform

OptimizerFactory = Callable[..., torch.optim.Optimizer]
StepCallback = Callable[[int], Any]


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Args:
        iterations: At most so many.
        learning_rate: mm an iteration.
        tolerance: Stops when the loss gained less over the last ``window`` iterations than this
            share of all it has gained; 0 never stops early.
        window: Iterations that are averaged; the loss is looked at once a window.
        optimizer: ``(parameters, lr=) -> torch.optim.Optimizer``.
    """

    iterations: int
    learning_rate: float
    tolerance: float = 0.01
    window: int = 10
    optimizer: OptimizerFactory = torch.optim.Adam


def descend(
    parametrization: Parametrization,
    objective: Objective,
    fixed: Image,
    moving: Image,
    settings: Descent,
    *,
    initial: Transform | None = None,
    on_step: StepCallback | None = None,
) -> list[float]:
    """Minimize ``objective(fixed, moving, parametrization(fixed, moving), initial)``.

    The parameters are changed in place and hold the best iterate at the end. The loss stays on
    its device; the host reads it once a window.

    Args:
        parametrization: What is searched for.
        objective: What is minimized.
        fixed: The reference.
        moving: The image to align.
        settings: Number and size of the steps, and when to stop.
        initial: Composed after the searched transform.
        on_step: Called after each iteration with 1, and at an early stop with the rest.

    Returns:
        The loss before each step.

    Raises:
        ValueError: The loss is not finite.
    """
    parameters = [p for p in parametrization.parameters() if p.numel()]
    optimizer = settings.optimizer(parameters, lr=settings.learning_rate)
    best = [p.detach().clone() for p in parameters]
    lowest: Tensor | None = None
    losses: list[Tensor] = []
    for iteration in range(settings.iterations):
        optimizer.zero_grad(set_to_none=True)
        loss = objective(fixed, moving, parametrization(fixed, moving), initial).total
        value = loss.detach()
        lowest = _keep_best(best, parameters, value, lowest)
        losses.append(value)
        loss.backward()
        optimizer.step()
        parametrization.after_step(fixed)
        if on_step is not None:
            on_step(1)
        if (iteration + 1) % settings.window == 0 and _has_converged(losses, settings):
            if on_step is not None:
                on_step(settings.iterations - iteration - 1)
            break
    if losses:
        with torch.no_grad():
            last = objective(fixed, moving, parametrization(fixed, moving), initial).total.detach()
            _keep_best(best, parameters, last, lowest)
            for parameter, kept in zip(parameters, best, strict=True):
                parameter.copy_(kept)
    return torch.stack(losses).tolist() if losses else []


def _keep_best(
    best: list[Tensor], parameters: list[torch.nn.Parameter], value: Tensor, lowest: Tensor | None
) -> Tensor:
    """Copy the parameters where ``value`` is the lowest so far, without asking the device."""
    better = torch.ones_like(value, dtype=torch.bool) if lowest is None else value < lowest
    for kept, parameter in zip(best, parameters, strict=True):
        kept.copy_(torch.where(better, parameter.detach(), kept))
    return value if lowest is None else torch.minimum(value, lowest)


def _has_converged(losses: list[Tensor], settings: Descent) -> bool:
    values = torch.stack(losses).tolist()
    if not all(value == value and abs(value) != float("inf") for value in values[-settings.window :]):
        raise ValueError(
            "The registration diverged: the loss is not finite. "
            "Use a smaller learning rate or a larger regularization weight."
        )
    if settings.tolerance <= 0 or len(values) < 2 * settings.window:
        return False
    now = sum(values[-settings.window :])
    before = sum(values[-2 * settings.window : -settings.window])
    gained = values[0] - min(values)
    return (before - now) / settings.window < settings.tolerance * gained
