"""The classical method: stages that minimize an objective for one pair."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from learnreg.data.preprocessing import normalized
from learnreg.errors import InputError, InputTypeError
from learnreg.image import Image
from learnreg.methods.base import Method, Registration, check_pair
from learnreg.optimization import Stage, StageDict, run_stages
from learnreg.transforms import Transform
from learnreg.typing import StepCallback


class IterativeMethod(Method):
    """Method that runs stages one after the other, on intensities rescaled to [0, 1].

    Args:
        stages: Stages by name, in order; each stage starts from the result of the stages before it. A ``None`` is left
            out, so that a preset can remove a stage of the preset that it extends.

    Raises:
        InputError: There is no stage.
        InputTypeError: A value is not a :class:`learnreg.optimization.Stage`.

    Example:
        >>> from learnreg.optimization import CenterOfMass
        >>> method = IterativeMethod({"center": CenterOfMass(), "rotation": None})
        >>> list(method.stages)
        ['center']
    """

    def __init__(self, stages: Mapping[str, Stage | None] | StageDict) -> None:
        super().__init__()
        given = {name: stage for name, stage in stages.items() if stage is not None}
        if not given:
            raise InputError("IterativeMethod needs at least one stage, got none.")
        for name, stage in given.items():
            if not isinstance(stage, Stage):
                raise InputTypeError(
                    f"Stage {name!r} must be a learnreg.optimization.Stage, got {type(stage).__name__}."
                )
        self.stages: StageDict = StageDict(given)

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages.values())

    def forward(
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
        found = run_stages(list(self.stages.values()), target, source, initial=initial, on_step=on_step)
        seconds = time.perf_counter() - began
        return Registration(found.transform, fixed, moving, initial, found.history, seconds)
