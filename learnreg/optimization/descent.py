"""Gradient descent on an objective over the parameters of one pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.optimizers import Adam
from learnreg.optimization.parametrization import Parametrization
from learnreg.transforms import Transform
from learnreg.typing import StepCallback

OptimizerFactory = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Descent:
    """Settings of a descent.

    Args:
        iterations: Maximum number of evaluations of the objective: one per iteration, or several with a line search.
        learning_rate: Step size, mm per iteration.
        tolerance: Stop early when the mean loss of the last ``window`` iterations is lower than that of the ``window``
            iterations before by less than this share of the total decrease; 0 never stops early.
        window: Number of iterations to average; convergence is checked once per window.
        optimizer: ``(parameters, lr=) -> torch.optim.Optimizer``; any optimizer of torch, including L-BFGS, or of
            :mod:`learnreg.optimization.optimizers`.
        final_rate: Learning rate of the last iteration, as a share of ``learning_rate``: the rate decreases by the same
            factor after each iteration. 1 is a constant rate. Adam moves each parameter by about the learning rate, so
            with a constant rate it ends within a step of the minimum, and not at it.

    Raises:
        InputError: ``final_rate`` is not in (0, 1].

    Example:
        >>> Descent(iterations=100, learning_rate=0.5, optimizer=torch.optim.SGD).tolerance
        0.01
    """

    iterations: int
    learning_rate: float
    tolerance: float = 0.01
    window: int = 10
    optimizer: OptimizerFactory = Adam
    final_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.final_rate <= 1:
            raise InputError(f"final_rate must be in (0, 1], got {self.final_rate}; 1 is a constant rate.")

    @property
    def decay(self) -> float:
        """Factor between the learning rates of two iterations."""
        return float(self.final_rate ** (1 / max(self.iterations - 1, 1)))


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

    The parameters are changed in place; at the end they hold the iterate with the lowest loss.

    Args:
        parametrization: Parameters to optimize.
        objective: Objective to minimize.
        fixed: The reference.
        moving: The image to align.
        settings: Number and size of the steps, and when to stop.
        initial: Transform that is applied after the optimized one.
        on_step: Called with the number of evaluations since the last call. At an early stop, the last call includes the
            evaluations that were left out.

    Returns:
        The loss at each evaluation.

    Raises:
        InputError: The loss is not finite; it is checked once per window, and at the end.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> shift = learnreg.optimization.LinearParametrization(torch.zeros(1, 2), 5.0, "translation")
        >>> losses = descend(shift, learnreg.Objective(learnreg.similarity.MSE()), fixed, moving, Descent(50, 0.2))
        >>> [round(x) for x in shift.translation.flatten().tolist()]
        [2, 0]
    """
    parameters = [p for p in parametrization.parameters() if p.numel()]
    optimizer = settings.optimizer(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, settings.decay)
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
        schedule.step()
        parametrization.after_step(fixed)
    if search.losses:
        # The loss of the last iterate is not known yet: each loss belongs to the parameters before a step.
        with torch.no_grad():
            search.best.offer(score(parametrization(fixed, moving)).total.detach())
    return search.finish()


class Search:
    """Losses of a descent, its best iterate, and its stopping rule.

    Use it as ``while search.goes_on(): ...``, with a call of :meth:`record` per evaluation, then :meth:`finish`.

    Args:
        parameters: Parameters that the descent changes in place.
        settings: Number of evaluations, and when to stop early.
        on_step: See :func:`descend`.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], settings: Descent, on_step: StepCallback | None) -> None:
        self.settings, self.on_step = settings, on_step
        self.best = Best(parameters)
        self.losses: list[Tensor] = []
        self._reported = 0

    def record(self, loss: Tensor) -> None:
        """Record the loss of the current parameters."""
        self.best.offer(loss)
        self.losses.append(loss)

    def goes_on(self) -> bool:
        """Return whether to take another step; convergence is checked once per window."""
        # Reading a loss makes the host wait for the device, so it is done only when another window is complete. A step
        # with a line search adds several losses, hence the comparison of quotients.
        done, window = len(self.losses), self.settings.window
        over = done >= self.settings.iterations
        if done // window > self._reported // window:
            over = has_converged(self.losses, self.settings) or over
        self._report(self.settings.iterations if over else done)
        return not over

    def finish(self) -> list[float]:
        """Set the parameters to the best iterate, and return the losses.

        Raises:
            InputError: A loss is not finite.
        """
        if not self.losses:
            return []
        values: list[float] = torch.stack(self.losses).tolist()
        check_finite(values)
        self.best.restore()
        return values

    def _report(self, done: int) -> None:
        if self.on_step is not None and done > self._reported:
            self.on_step(done - self._reported)
        self._reported = done


class Best:
    """Copy of the parameters with the lowest loss so far.

    The comparison stays on the device; the host does not wait for it.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.kept = [p.detach().clone() for p in parameters]
        self.lowest = parameters[0].detach().new_tensor(float("inf"))

    def offer(self, value: Tensor) -> None:
        """Keep the current parameters if their loss ``value`` is the lowest so far."""
        better = value < self.lowest  # False for NaN
        for kept, parameter in zip(self.kept, self.parameters, strict=True):
            kept.copy_(torch.where(better, parameter.detach(), kept))
        self.lowest = torch.where(better, value, self.lowest)

    def restore(self) -> None:
        """Set the parameters to the kept ones."""
        with torch.no_grad():
            for kept, parameter in zip(self.kept, self.parameters, strict=True):
                parameter.copy_(kept)


def has_converged(losses: list[Tensor], settings: Descent) -> bool:
    """Return whether the loss decreased too little over the last window, see :class:`Descent`.

    Args:
        losses: Scalars, in order.
        settings: Window and tolerance.

    Raises:
        InputError: A loss is not finite.
    """
    values = torch.stack(losses).tolist()
    check_finite(values)
    if settings.tolerance <= 0 or len(values) < 2 * settings.window:
        return False
    now = sum(values[-settings.window :])
    before = sum(values[-2 * settings.window : -settings.window])
    gained = values[0] - min(values)
    return (before - now) / settings.window < settings.tolerance * gained


def check_finite(losses: Sequence[float]) -> None:
    """Raise ``InputError`` if a loss is NaN or infinite."""
    for k, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise InputError(
                f"The registration diverged: the loss is {loss} at evaluation {k + 1}. "
                "Use a smaller learning rate or a larger regularization weight."
            )
