"""One-shot method: one pass of a trained network, for a pair of any shape and orientation."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.methods.base import Method, Registration, check_pair
from learnreg.networks.checkpoint import Checkpoint
from learnreg.numerics import SmallConvolutions
from learnreg.optimization import IterativeStage, LevelHistory
from learnreg.transforms import Transform, align_centers, chain
from learnreg.typing import StepCallback


@dataclass(frozen=True, eq=False)
class ModelPair:
    """Pair of images on one grid of the network.

    Args:
        fixed: The reference, intensities in [0, 1].
        moving: The image to align, on the same grid, intensities in [0, 1].
        initial: Transform by which the moving image was resampled; the network's transform is composed with it.
    """

    fixed: Image
    moving: Image
    initial: Transform


class OneShotMethod(Method):
    """Method that runs a trained network once.

    Both images are resampled to a grid of the network. Without an initial transform, the centers of their fields of
    view or of their contents are aligned, as in training. The transform maps between the spaces of the original images.

    Args:
        checkpoint: Result of :func:`learnreg.networks.load_checkpoint`.
        refine: Number of iterations of the checkpoint's refinement stage, after the network; 0 runs the network only.
        weight: Regularization weight for a :class:`learnreg.networks.Conditioned` network; ``None`` is its default.

    Raises:
        InputError: ``refine`` is negative, the checkpoint has no refinement stage, or the network does not take
            ``weight``.

    Example:
        >>> method = OneShotMethod(learnreg.load_checkpoint("hippocampus"), refine=10)
        >>> method.iterations
        10
    """

    def __init__(self, checkpoint: Checkpoint, *, refine: int = 0, weight: float | None = None) -> None:
        if refine < 0:
            raise InputError(f"refine is a number of iterations and must be at least 0, got {refine}.")
        if refine and not isinstance(checkpoint.refinement, IterativeStage):
            raise InputError(
                f"This checkpoint has no refinement stage, got refine={refine}; use refine=0, or train with "
                "refinement=default."
            )
        super().__init__()
        checkpoint.network.check_weight(weight)
        self.network, self.weight, self.refine = checkpoint.network, weight, int(refine)
        self.space = ModelSpace(**checkpoint.space)
        if isinstance(checkpoint.refinement, IterativeStage):
            self.correction = checkpoint.refinement.limited(self.refine)

    @property
    def iterations(self) -> int:
        return self.refine

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
        pair = self.prepare(fixed, moving, initial)
        with torch.no_grad(), SmallConvolutions():
            answer = self.network.predict(pair.fixed, pair.moving, weight=self.weight).transform
        history: tuple[LevelHistory, ...] = ()
        if self.refine:
            answer, history = self.refined(pair, answer.detach(), on_step)
        if pair.fixed.data.is_cuda:
            torch.cuda.synchronize()  # the time must include the computation, which is asynchronous
        seconds = time.perf_counter() - began
        return Registration(chain(answer, pair.initial), fixed, moving, pair.initial, history, seconds)

    def prepare(self, fixed: Image, moving: Image, initial: Transform | None = None) -> ModelPair:
        """Resample both images to one grid of the network, with intensities in [0, 1].

        Args:
            fixed: The reference.
            moving: The image to align.
            initial: Transform to resample the moving image by; ``None`` aligns the centers.
        """
        target, source = (self.space.seen(Image(image.data, image.grid, image.mask)) for image in (fixed, moving))
        target, source = normalized(target, name="the fixed image"), normalized(source, name="the moving image")
        target = self.space.place(target, cover=True)
        if initial is None:
            initial = align_centers(target.grid, self.space.grid_for(self.space.frame(source), cover=True))
        initial = initial.to(target.grid.dtype)
        source = self.space.onto(source, target.grid, initial)
        return ModelPair(target, source, initial)

    def refined(
        self, pair: ModelPair, answer: Transform, on_step: StepCallback | None = None
    ) -> tuple[Transform, tuple[LevelHistory, ...]]:
        """Compose the network's transform with a correction by the refinement stage.

        Only the correction is penalized.

        Args:
            pair: Result of :meth:`prepare`.
            answer: Transform of the network, between the images of ``pair``.
            on_step: See :meth:`forward`.

        Returns:
            The composed transform, and the losses of the stage.
        """
        result = self.correction(pair.fixed, pair.moving, answer, on_step=on_step)
        return chain(result.transform, answer), result.history
