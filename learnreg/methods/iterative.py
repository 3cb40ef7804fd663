"""The classical method: stages that minimize an objective for one pair."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from learnreg.data.preprocessing import continued, normalized, onto_grid, with_view, without_padding
from learnreg.errors import InputError, InputTypeError
from learnreg.grid import Grid
from learnreg.image import Image, crop_to_content
from learnreg.methods.base import Method, Registration, check_pair
from learnreg.optimization import FieldStage, IterativeStage, Stage, StageDict, run_stages
from learnreg.transforms import Sampled, Transform, chain
from learnreg.typing import StepCallback

Outside = Literal["unknown", "background"]
AROUND = 8  # samples of the moving image that are kept beyond the fixed grid


class IterativeMethod(Method):
    """Method that runs stages one after the other, on intensities rescaled to [0, 1].

    Quantiles, coarser levels and similarities count the voxels of the masks only; the nearest of these values continue
    beyond a mask. A constant that a scanner wrote where it measured nothing is masked out, see
    :func:`learnreg.data.preprocessing.without_padding`.

    Args:
        stages: Stages by name, in order; each stage starts from the result of the stages before it. A ``None`` is left
            out, so that a preset can remove a stage of the preset that it extends.
        outside: What lies beyond an image whose content reaches its border: ``"unknown"`` does not count it, see
            :func:`learnreg.data.preprocessing.with_view`; ``"background"`` compares it as 0.

    Raises:
        InputError: There is no stage, or ``outside`` is unknown.
        InputTypeError: A value is not a :class:`learnreg.optimization.Stage`.

    Example:
        >>> from learnreg.optimization import CenterOfMass
        >>> method = IterativeMethod({"center": CenterOfMass(), "rotation": None})
        >>> list(method.stages)
        ['center']
    """

    def __init__(self, stages: Mapping[str, Stage | None] | StageDict, *, outside: Outside = "unknown") -> None:
        super().__init__()
        if outside not in get_args(Outside):
            raise InputError(f"outside must be {' or '.join(map(repr, get_args(Outside)))}, got {outside!r}.")
        self.outside = outside
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

    def limited(self, iterations: int) -> IterativeMethod:
        """Return a copy of this method whose last iterative stage has another number of iterations, and no other does.

        See :meth:`learnreg.optimization.IterativeStage.limited`.

        Args:
            iterations: Maximum number of iterations.

        Raises:
            InputError: No stage iterates.
        """
        found = [(name, stage) for name, stage in self.stages.items() if isinstance(stage, IterativeStage)]
        if not found:
            raise InputError(f"A refinement needs a stage that iterates; this method has {', '.join(self.stages)}.")
        name, last = found[-1]
        others = {key: stage for key, stage in self.stages.items() if not isinstance(stage, IterativeStage)}
        return IterativeMethod({**others, name: last.limited(iterations)}, outside=self.outside)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        *,
        initial: Transform | None = None,
        on_step: StepCallback | None = None,
    ) -> Registration:
        check_pair(fixed, moving, initial)
        began = time.perf_counter()
        target, source = self.prepare(fixed, "the fixed image"), self.prepare(moving, "the moving image")
        initial = None if initial is None else initial.to(target.grid.dtype)
        stages = [stage for stage in self.stages.values() if initial is None or not stage.is_start]
        if initial is None or Sampled(initial, target.grid).deforming == 0 or source.landmarks is not None:
            found = run_stages(stages, target, source, initial=initial, on_step=on_step)
            transform = found.transform
        else:  # a deformation would be computed again in each iteration
            used = compared_part(target, stages)
            found = run_stages(stages, target, pulled(source, initial, used.grid), on_step=on_step)
            transform = chain(found.transform, initial)
        seconds = time.perf_counter() - began
        return Registration(transform, fixed, moving, initial, found.history, seconds)

    def prepare(self, image: Image, name: str = "image") -> Image:
        """Return the intensities in [0, 1] that the stages compare, with the mask of the voxels that count.

        Args:
            image: The image as stored.
            name: Name in error messages.

        Raises:
            InputError: The image is constant within its mask, or the mask is empty.
        """
        image = continued(normalized(without_padding(replace(image, labels=None)), name=name))
        return with_view(image) if self.outside == "unknown" else image


def compared_part(fixed: Image, stages: Sequence[Stage]) -> Image:
    """Return the part of the fixed image that stages compare: a crop if each of them crops it, else all of it."""
    margins = [stage.crop for stage in stages if isinstance(stage, FieldStage) and stage.crop is not None]
    return crop_to_content(fixed, margin=max(margins)) if margins and len(margins) == len(stages) else fixed


def pulled(moving: Image, initial: Transform, grid: Grid) -> Image:
    """Return the moving image as an initial transform brings it, on the fixed grid and some samples around it.

    What a method finds on it acts before the initial transform.

    Args:
        moving: The image to align.
        initial: Points of the fixed space to points of the moving space.
        grid: Of the fixed image, or of the part of it that is compared.
    """
    around = grid.cropped([-AROUND] * grid.ndim, [n + 2 * AROUND for n in grid.shape])
    return onto_grid(moving, around, initial)
