"""Stages: the interface, the result, and running them in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from learnreg.image import Image
from learnreg.transforms import Affine, Transform, chain
from learnreg.typing import StepCallback


@dataclass(frozen=True)
class LevelHistory:
    """History of a level: the name of its stage, the shape of its grid, the loss before each step."""

    stage: str
    shape: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class StageResult:
    """Result of a stage: its transform, not composed with the initial one, and its history."""

    transform: Transform
    history: tuple[LevelHistory, ...] = ()


class Stage(nn.Module):
    """A step of a method that improves the alignment of one pair."""

    @abstractmethod
    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        """Find ``T`` so that ``moving o initial o T`` matches ``fixed``.

        Args:
            fixed: One image.
            moving: One image.
            initial: Result of earlier stages, applied after ``T``.
            on_step: Called with the number of iterations done.

        Returns:
            ``T`` and the history of the losses.

        Raises:
            InputError: The pair cannot be aligned by this stage.
        """

    @property
    def iterations(self) -> int:
        """Maximum number of gradient evaluations, for progress bars."""
        return 0


class StageDict(nn.ModuleDict):
    """Stages by name, in the order in which they run."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        super().__init__(dict(stages))

    def values(self) -> ValuesView[Stage]:  # type: ignore[override]
        return cast("ValuesView[Stage]", super().values())

    def __getitem__(self, key: str) -> Stage:
        return cast("Stage", super().__getitem__(key))


def run_stages(
    stages: Sequence[Stage],
    fixed: Image,
    moving: Image,
    *,
    initial: Transform | None = None,
    on_step: Callable[[int], Any] | None = None,
) -> StageResult:
    """Run stages in order; each one starts from the result of those before.

    Args:
        stages: In order.
        fixed: One image.
        moving: One image.
        initial: Where the first stage starts.
        on_step: Called with the number of iterations done.

    Returns:
        The composed transform, including ``initial``, and all histories.
    """
    total, history = initial, []
    for stage in stages:
        result = stage(fixed, moving, total, on_step=on_step)
        total = compose_found(result.transform, total)
        history.extend(result.history)
    if total is None:
        total = Affine.identity(fixed.ndim).to(fixed.data.device)
    return StageResult(total, tuple(history))


def compose_found(found: Transform, initial: Transform | None) -> Transform:
    """Apply ``found`` first, then ``initial``; two affine maps become one matrix."""
    if isinstance(found, Affine) and isinstance(initial, Affine):
        return found.then(initial)
    return chain(found, initial)
