"""Gradient descent on an objective over the parameters of one pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.parametrization import Parametrization
from learnreg.transforms import Transform
from learnreg.typing import StepCallback

OptimizerFactory = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Descent:
    """Settings of a descent.

    Args:
        iterations: Maximum number of evaluations of the objective; one per iteration, except for optimizers with a line
            search.
        learning_rate: mm per iteration.
        tolerance: Stop when the loss decreased over the last ``window`` iterations by less than this share of its total
            decrease; 0 never stops early.
        window: Iterations to average; convergence is checked once per window.
        optimizer: ``(parameters, lr=) -> torch.optim.Optimizer``; any of torch's, including L-BFGS, or of
            :mod:`learnreg.optimization.optimizers`.
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
    """Minimize ``objective(fixed, moving, parametrization(fixed, moving), initial)`` over the parameters.

    The parameters are changed in place and hold the best iterate at the end. The losses stay on their device; the host
    reads them once per window.

    Args:
        parametrization: The parameters to optimize.
        objective: Objective to minimize.
        fixed: The reference.
        moving: The image to align.
        settings: Number and size of the steps, and when to stop.
        initial: Transform applied after the optimized one.
        on_step: Called after each iteration with 1, and at an early stop with the number of skipped iterations.

    Returns:
        The loss at each evaluation.

    Raises:
        InputError: The loss is not finite.
    """
    parameters = [p for p in parametrization.parameters() if p.numel()]
    optimizer = settings.optimizer(parameters, lr=settings.learning_rate)
    search = Search(parameters, settings, on_step)

    score = objective.prepare(fixed, moving, initial)

    def evaluate() -> Tensor:
        loss = score(parametrization(fixed, moving)).total
        search.record(loss.detach())
        if torch.is_grad_enabled():
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        return loss

    while search.goes_on():
        optimizer.step(evaluate)  # type: ignore[arg-type]
        parametrization.after_step(fixed)
    if search.losses:
        with torch.no_grad():
            search.best.offer(score(parametrization(fixed, moving)).total.detach())
    return search.finish()


class Search:
    """The losses of a descent, its best iterate, and its stopping rule.

    Args:
        parameters: Changed in place.
        settings: Number of evaluations, and when to stop early.
        on_step: See :func:`descend`.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], settings: Descent, on_step: StepCallback | None) -> None:
        self.settings, self.on_step = settings, on_step
        self.best = Best(parameters)
        self.losses: list[Tensor] = []
        self._told = 0

    def record(self, loss: Tensor) -> None:
        """Record the loss of the current parameters."""
        self.best.offer(loss)
        self.losses.append(loss)

    def goes_on(self) -> bool:
        """Return whether to take another step; convergence is checked once per window."""
        done, window = len(self.losses), self.settings.window
        over = done >= self.settings.iterations
        if done // window > self._told // window:
            over = has_converged(self.losses, self.settings) or over
        self._tell(self.settings.iterations if over else done)
        return not over

    def finish(self) -> list[float]:
        """Restore the best iterate, and return the losses."""
        if not self.losses:
            return []
        self.best.restore()
        values: list[float] = torch.stack(self.losses).tolist()
        return values

    def _tell(self, done: int) -> None:
        if self.on_step is not None and done > self._told:
            self.on_step(done - self._told)
        self._told = done


class Best:
    """The parameters with the lowest loss so far, selected on the device without a transfer to the host."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.kept = [p.detach().clone() for p in parameters]
        self.lowest: Tensor | None = None

    def offer(self, value: Tensor) -> None:
        """Keep the current parameters if ``value`` is the lowest."""
        better = torch.ones_like(value, dtype=torch.bool) if self.lowest is None else value < self.lowest
        for kept, parameter in zip(self.kept, self.parameters, strict=True):
            kept.copy_(torch.where(better, parameter.detach(), kept))
        self.lowest = value if self.lowest is None else torch.minimum(value, self.lowest)

    def restore(self) -> None:
        """Set the parameters to the kept ones."""
        with torch.no_grad():
            for kept, parameter in zip(self.kept, self.parameters, strict=True):
                parameter.copy_(kept)


def has_converged(losses: list[Tensor], settings: Descent) -> bool:
    """Return whether the last window decreased the loss too little, see :class:`Descent`.

    Raises:
        InputError: A loss is not finite.
    """
    values = torch.stack(losses).tolist()
    if not all(value == value and abs(value) != float("inf") for value in values[-settings.window :]):
        raise InputError(
            "The registration diverged: the loss is not finite. "
            "Use a smaller learning rate or a larger regularization weight."
        )
    if settings.tolerance <= 0 or len(values) < 2 * settings.window:
        return False
    now = sum(values[-settings.window :])
    before = sum(values[-2 * settings.window : -settings.window])
    gained = values[0] - min(values)
    return (before - now) / settings.window < settings.tolerance * gained
