"""One-shot method: one pass of a trained network, for a pair of any shape and orientation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.methods.base import Method, Registration, check_pair
from learnreg.networks.checkpoint import Checkpoint
from learnreg.numerics import SmallConvolutions
from learnreg.optimization import IterativeStage, LevelHistory
from learnreg.orientation import Orientation
from learnreg.transforms import Affine, Transform, align_centers, chain, unstacked_transforms
from learnreg.transforms.affine import homogeneous
from learnreg.typing import StepCallback


@dataclass(frozen=True, eq=False)
class ModelPair:
    """Pair of images on one grid of the network.

    Args:
        fixed: The reference, intensities in [0, 1].
        moving: The image to align, on the same grid, intensities in [0, 1].
        initial: Transform by which the moving image was resampled; the network's transform is composed with it.
        turn: By which both images were turned to the orientation of the network; ``None`` if they were not.
    """

    fixed: Image
    moving: Image
    initial: Transform
    turn: Affine | None = None

    def turned_back(self, transform: Transform) -> Transform:
        """Return the transform between the images as they were given."""
        return transform if self.turn is None else chain(self.turn, transform, self.turn.inverse())


class OneShotMethod(Method):
    """Method that runs a trained network once.

    Both images are resampled to a grid of the network, in the orientation of their headers or in the one that the
    network recognizes, see :class:`learnreg.networks.Oriented`. Without an initial transform, the centers of their
    fields of view or of their contents are aligned, as in training. The transform maps between the spaces of the
    original images.

    Args:
        checkpoint: Result of :func:`learnreg.networks.load_checkpoint`.
        refine: Number of iterations of the checkpoint's refinement, after the network; 0 runs the network only. A
            refinement is a stage, which corrects the answer on the grid of the network, or a method, which goes on from
            it with the images themselves.
        weight: Regularization weight for a :class:`learnreg.networks.Conditioned` network; ``None`` is its default.

    Raises:
        InputError: ``refine`` is negative, the checkpoint has no refinement, or the network does not take
            ``weight``.

    Example:
        >>> method = OneShotMethod(learnreg.load_checkpoint("hippocampus"), refine=10)
        >>> method.iterations
        10
    """

    def __init__(self, checkpoint: Checkpoint, *, refine: int = 0, weight: float | None = None) -> None:
        if refine < 0:
            raise InputError(f"refine is a number of iterations and must be at least 0, got {refine}.")
        refinement = checkpoint.refinement
        if refine and not isinstance(refinement, (IterativeStage, Method)):
            raise InputError(
                f"This checkpoint has no refinement stage, got refine={refine}; use refine=0, or train with "
                "refinement=default."
            )
        super().__init__()
        checkpoint.network.check_weight(weight)
        self.network, self.weight, self.refine = checkpoint.network, weight, int(refine)
        self.space = ModelSpace(**checkpoint.space)
        if isinstance(refinement, (IterativeStage, Method)):
            self.correction = refinement.limited(self.refine)

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
        return self.several([(fixed, moving, initial)], on_step=on_step)[0]

    def several(
        self, pairs: Sequence[tuple[Image, Image, Transform | None]], *, on_step: StepCallback | None = None
    ) -> list[Registration]:
        """Register several pairs; those on grids of one shape go through the network together.

        Args:
            pairs: Fixed image, moving image and initial transform of each, see :meth:`forward`.
            on_step: See :meth:`forward`.

        Returns:
            The registrations in the order of the pairs; the time is shared equally.

        Raises:
            InputError: See :meth:`forward`.
        """
        began = time.perf_counter()
        for pair in pairs:
            check_pair(*pair)
        ready = [self.prepare(*pair) for pair in pairs]
        answers = self._answers(ready)
        transforms = [one.turned_back(chain(answer, one.initial)) for one, answer in zip(ready, answers, strict=True)]
        histories: list[tuple[LevelHistory, ...]] = [() for _ in pairs]
        if self.refine:
            refined = [self._refined(*parts, on_step) for parts in zip(pairs, ready, answers, strict=True)]
            transforms, histories = [found for found, _ in refined], [history for _, history in refined]
        if any(one.fixed.data.is_cuda for one in ready):
            torch.cuda.synchronize()  # the time must include the computation, which is asynchronous
        seconds = (time.perf_counter() - began) / max(1, len(pairs))
        return [
            Registration(transform, fixed, moving, one.turned_back(one.initial), history, seconds)
            for (fixed, moving, _), one, transform, history in zip(pairs, ready, transforms, histories, strict=True)
        ]

    def _answers(self, pairs: Sequence[ModelPair]) -> list[Transform]:
        """Return the network's transform of each pair."""
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for k, pair in enumerate(pairs):
            alike[pair.fixed.grid.shape, pair.fixed.mask is None, pair.moving.mask is None].append(k)
        answers: dict[int, Transform] = {}
        for members in alike.values():
            fixed, moving = stack([pairs[k].fixed for k in members]), stack([pairs[k].moving for k in members])
            with torch.no_grad(), SmallConvolutions():
                found = self.network.predict(fixed, moving, weight=self.weight).transform.detach()
            answers |= zip(
                members, unstacked_transforms(found, len(members)) if len(members) > 1 else [found], strict=True
            )
        return [answers[k] for k in range(len(pairs))]

    def prepare(self, fixed: Image, moving: Image, initial: Transform | None = None) -> ModelPair:
        """Resample both images to one grid of the network, with intensities in [0, 1].

        Args:
            fixed: The reference.
            moving: The image to align.
            initial: Transform to resample the moving image by; ``None`` aligns the centers.
        """
        target, source = (self.space.seen(Image(image.data, image.grid, image.mask)) for image in (fixed, moving))
        target, source = normalized(target, name="the fixed image"), normalized(source, name="the moving image")
        space = self.space.fitted(target)
        turn = None
        if self.network.recognizes_orientation:
            turn = _turn(self.network.orientation(space.place(target), space.place(source)), target)
        if turn is not None:
            target, source = (_turned(image, turn) for image in (target, source))
            initial = None if initial is None else chain(turn.inverse(), initial.to(target.grid.dtype), turn)
        target = space.place(target, cover=True)
        if initial is None:
            initial = align_centers(target.grid, space.grid_for(space.frame(source), cover=True))
        initial = initial.to(target.grid.dtype)
        source = space.onto(source, target.grid, initial)
        return ModelPair(target, source, initial, turn)

    def _refined(
        self,
        given: tuple[Image, Image, Transform | None],
        pair: ModelPair,
        answer: Transform,
        on_step: StepCallback | None,
    ) -> tuple[Transform, tuple[LevelHistory, ...]]:
        """Correct the network's answer; only the correction is penalized.

        Returns:
            The transform between the given images, and the losses.
        """
        if isinstance(self.correction, Method):
            fixed, moving, _ = given
            start = pair.turned_back(chain(answer, pair.initial))
            result = self.correction(fixed, moving, initial=start, on_step=on_step)
            return result.transform, result.history
        found = self.correction(pair.fixed, pair.moving, answer, on_step=on_step)
        return pair.turned_back(chain(found.transform, answer, pair.initial)), found.history


def _turn(orientation: Orientation, image: Image) -> Affine | None:
    """Return the map of an orientation about the origin of space, for an image; ``None`` if it changes nothing."""
    if orientation.identical:
        return None
    linear = orientation.matrix.to(image.grid.affine).unsqueeze(0)
    return Affine(homogeneous(linear, linear.new_zeros(1, image.ndim)))


def _turned(image: Image, turn: Affine) -> Image:
    """Turn an image by its header."""
    return replace(image, grid=Grid(image.grid.shape, turn.matrix @ image.grid.affine))


class ByDimension(Method):
    """Method that registers volumes with one model and 2-D images with another.

    Args:
        models: One for each dimension.
    """

    def __init__(self, models: Sequence[OneShotMethod]) -> None:
        super().__init__()
        self.models = nn.ModuleDict({str(model.network.ndim): model for model in models})

    @property
    def iterations(self) -> int:
        return max(model.refine for model in self.models.values() if isinstance(model, OneShotMethod))

    def forward(
        self,
        fixed: Image,
        moving: Image,
        *,
        initial: Transform | None = None,
        on_step: StepCallback | None = None,
    ) -> Registration:
        check_pair(fixed, moving, initial)
        found: Registration = self.models[str(fixed.ndim)](fixed, moving, initial=initial, on_step=on_step)
        return found
