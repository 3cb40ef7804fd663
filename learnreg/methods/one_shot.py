"""The learned method: one pass of a trained network, for a pair of any shape and orientation."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from learnreg.data.preprocessing import ModelSpace, normalized, onto_grid
from learnreg.image import Image
from learnreg.methods.base import Method, Registration, StepCallback, check_pair
from learnreg.networks.checkpoint import Checkpoint
from learnreg.optimization import FieldStage, LevelHistory
from learnreg.transforms import Displacement, Transform, Velocity, align_centers, chain


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A pair on the network's grid, and the transform that brought the moving image there."""

    fixed: Image
    moving: Image
    initial: Transform


class OneShotMethod(Method):
    """Brings the pair to the network's grid, asks it once, and composes the answer back.

    Without ``initial``, the centers of the fields of view are aligned, as in training.

    Args:
        checkpoint: See :func:`learnreg.networks.checkpoint.load_checkpoint`.
        refine: Classical steps from the network's answer, on the objective it was trained with.
        learning_rate: mm a step of the refinement, for a voxel side of 1 mm.
    """

    def __init__(self, checkpoint: Checkpoint, *, refine: int = 0, learning_rate: float = 0.25) -> None:
        if refine < 0:
            raise ValueError(f"refine is a number of steps, at least 0, got {refine}.")
        self.checkpoint, self.refine, self.learning_rate = checkpoint, int(refine), float(learning_rate)
        self.space = ModelSpace(**checkpoint.space)

    @property
    def iterations(self) -> int:
        return self.refine

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
        pair = self.prepare(fixed, moving, initial)
        with torch.no_grad():
            answer: Transform = self.checkpoint.network(pair.fixed, pair.moving)
        history: tuple[LevelHistory, ...] = ()
        if self.refine:
            answer, history = self.refined(pair, answer.detach(), on_step)
        seconds = time.perf_counter() - began
        return Registration(chain(answer, pair.initial), fixed, moving, pair.initial, history, seconds)

    def prepare(self, fixed: Image, moving: Image, initial: Transform | None = None) -> ModelPair:
        """Both images on one grid of the model, intensities in [0, 1]."""
        target, source = normalized(fixed, name="the fixed image"), normalized(moving, name="the moving image")
        target = self.space.place(Image(target.data, target.grid, target.mask), cover=True)
        if initial is None:
            initial = align_centers(target.grid, self.space.grid_for(moving.grid, cover=True))
        source = onto_grid(Image(source.data, source.grid, source.mask), target.grid, initial)
        return ModelPair(target, source, initial)

    def refined(
        self, pair: ModelPair, answer: Transform, on_step: StepCallback | None = None
    ) -> tuple[Transform, tuple[LevelHistory, ...]]:
        """The network's answer as the start of a descent on the training objective."""
        if not isinstance(answer, (Velocity, Displacement)):
            raise ValueError(f"Refinement needs a network that returns a field, got {type(answer).__name__}.")
        kind = "velocity" if isinstance(answer, Velocity) else "displacement"
        coarsening = max(full / own for full, own in zip(pair.fixed.grid.shape, answer.grid.shape, strict=True))
        stage = FieldStage(
            self.checkpoint.objective,
            kind,  # type: ignore[arg-type]
            factors=(1,),
            iterations=(self.refine,),
            learning_rate=self.learning_rate,
            coarsening=coarsening,
            steps=answer.steps if isinstance(answer, Velocity) else 0,
            tolerance=0,
        )
        result = stage(pair.fixed, pair.moving, start=answer, on_step=on_step)
        return result.transform, result.history
