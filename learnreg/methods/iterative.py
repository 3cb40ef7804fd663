"""The classical method: stages that minimize an objective for one pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from learnreg.data.preprocessing import normalized
from learnreg.image import Image
from learnreg.methods.base import Method, Registration, StepCallback, check_pair
from learnreg.optimization import Stage, run_stages
from learnreg.transforms import Transform


class IterativeMethod(Method):
    """Runs stages on the pair, with intensities rescaled to [0, 1].

    Args:
        stages: In order; each starts from what the others found.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("IterativeMethod needs at least one stage.")
        self.stages = tuple(stages)

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)

    def __call__(
        self,
        fixed: Image,
        moving: Image,
        *,
        initial: Transform | None = None,
        on_step: StepCallback | None = None,
    ) -> Registration:
        check_pair(fixed, moving)
        began = time.perf_counter()
        target, source = normalized(fixed, name="the fixed image"), normalized(moving, name="the moving image")
        target, source = replace(target, labels=None), replace(source, labels=None)
        found = run_stages(self.stages, target, source, initial=initial, on_step=on_step)
        seconds = time.perf_counter() - began
        return Registration(found.transform, fixed, moving, initial, found.history, seconds)
