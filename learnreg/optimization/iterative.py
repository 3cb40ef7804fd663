"""Stages that minimize an objective from coarse to fine."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image, crop_to_content
from learnreg.memory import check_fits
from learnreg.objective import Objective
from learnreg.optimization.dense import DenseParametrization
from learnreg.optimization.descent import Descent, OptimizerFactory, descend
from learnreg.optimization.linear import LinearParametrization
from learnreg.optimization.moments import center_of_mass
from learnreg.optimization.optimizers import Adam
from learnreg.optimization.parametrization import Parametrization, ParametrizationFactory
from learnreg.optimization.stage import LevelHistory, Stage, StageResult, check_pair
from learnreg.sampling import resize_image
from learnreg.transforms import Transform
from learnreg.transforms.affine import LinearKind
from learnreg.typing import StepCallback

IMAGES, FIELDS = 9, 12  # volumes at the peak of a descent, per channel and per free parameter of a voxel (measured)


class IterativeStage(Stage):
    """Stage that minimizes an objective at several resolutions, from coarse to fine.

    Derive a class and override :meth:`parametrization`, or use :class:`FieldStage` or :class:`LinearStage`.

    Args:
        objective: Objective to minimize.
        factors: Spacing of each level, coarse to fine, as multiples of the finest voxel spacing.
        iterations: Maximum number of iterations per level.
        learning_rate: Step size, mm per iteration, for images with a finest voxel spacing of 1 mm; it is multiplied by
            the finest voxel spacing.
        rate_growth: The learning rate of a level with factor ``f`` is multiplied by ``f^rate_growth``.
        tolerance: See :class:`Descent`.
        optimizer: ``(parameters, lr=) -> torch.optim.Optimizer``.
        final_rate: See :class:`Descent`; it holds in each level.

    Raises:
        InputError: ``factors`` and ``iterations`` differ in length, or are empty.

    Example:
        >>> from learnreg.optimization import CompositiveParametrization
        >>> class Greedy(IterativeStage):
        ...     def parametrization(self, fixed, grid):
        ...         return CompositiveParametrization(grid)
        >>> Greedy(learnreg.Objective(learnreg.similarity.MSE()), (4, 2), (60, 30), learning_rate=0.5).iterations
        90
    """

    smallest = 8
    """Lowest number of samples along an axis that a level reduces."""

    def __init__(
        self,
        objective: Objective,
        factors: Sequence[float],
        iterations: Sequence[int],
        *,
        learning_rate: float,
        rate_growth: float = 0.5,
        tolerance: float = 0.01,
        optimizer: OptimizerFactory = Adam,
        final_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if len(factors) != len(iterations) or not factors:
            raise InputError(
                f"A stage needs as many iterations as levels and at least one level, got iterations={list(iterations)} "
                f"and factors={list(factors)}."
            )
        if min(iterations) < 0 or not min(factors) > 0:
            raise InputError(
                f"A stage must have iterations of at least 0 and factors above 0, got iterations={list(iterations)} "
                f"and factors={list(factors)}. Correct them."
            )
        self.objective = objective
        self.factors, self.limits = tuple(float(f) for f in factors), tuple(int(n) for n in iterations)
        self.learning_rate, self.rate_growth, self.tolerance = (
            float(learning_rate),
            float(rate_growth),
            float(tolerance),
        )
        self.optimizer, self.final_rate = optimizer, float(final_rate)

    @property
    def iterations(self) -> int:
        return sum(self.limits)

    def limited(self, iterations: int) -> IterativeStage:
        """Return a copy of this stage with another number of iterations.

        The levels share them as they share those of this stage. With more iterations than configured, the learning rate
        decreases in proportion, so that more iterations do not move a vector farther in total.

        Args:
            iterations: Maximum number of iterations, of all levels together.
        """
        other, own = copy.copy(self), max(self.iterations, 1)
        ends = [round(iterations * sum(self.limits[: k + 1]) / own) for k in range(len(self.limits))]
        other.limits = tuple(end - begin for begin, end in pairwise([0, *ends]))
        other.learning_rate = self.learning_rate * min(1.0, own / max(iterations, 1))
        return other

    def needed_bytes(self, fixed: Image) -> float:
        """Estimate the peak memory of the finest level in bytes, without the images themselves."""
        # Free parameters per voxel are counted at the coarsest level, where a parametrization is small.
        coarse, fine = (fixed.grid.coarsened(f, smallest=8) for f in (max(self.factors), min(self.factors)))
        voxels = math.prod(fine.shape)
        free = sum(p.numel() for p in self.parametrization(fixed, coarse).parameters()) / math.prod(coarse.shape)
        return 4.0 * voxels * (IMAGES * fixed.data.shape[1] + FIELDS * free)

    def check_memory(self, fixed: Image) -> None:
        """Raise ``InputError`` if the finest level does not fit into memory."""
        size = "x".join(map(str, fixed.grid.shape[::-1]))
        remedy = (
            "Leave out the finest level in a copy of the preset (`factors: [8, 4, 2]` takes an eighth), crop the "
            "images, or use a machine with more memory."
        )
        what = f"A {type(self).__name__} on {size} voxels"
        check_fits(self.needed_bytes(fixed), fixed.data.device, what, remedy)

    @abstractmethod
    def parametrization(self, fixed: Image, grid: Grid) -> Parametrization:
        """Return the parametrization of the first level.

        Args:
            fixed: The fixed image at full resolution.
            grid: Fixed grid of the level.

        Returns:
            Parametrization of the identity; finer levels get theirs from :meth:`Parametrization.refined`.
        """

    def search(
        self,
        parameters: Parametrization,
        fixed: Image,
        moving: Image,
        settings: Descent,
        *,
        initial: Transform | None,
        on_step: StepCallback | None,
    ) -> list[float]:
        """Optimize the parameters of one level in place.

        Args:
            parameters: Parametrization of the level.
            fixed: The fixed image at the level's resolution.
            moving: The moving image at the level's resolution.
            settings: Number and size of the steps, and when to stop.
            initial: Transform that is applied after the optimized one.
            on_step: See :func:`descend`.

        Returns:
            The loss at each evaluation.
        """
        return descend(parameters, self.objective, fixed, moving, settings, initial=initial, on_step=on_step)

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        check_pair(fixed, moving)
        self.check_memory(fixed)
        initial = None if initial is None else initial.to(fixed.grid.dtype)
        # Images with a graph, such as a template that is being learned, are constants here.
        fixed, moving = (image.with_data(image.data.detach()) for image in (fixed, moving))
        parameters: Parametrization | None = None
        history = []
        side = float(fixed.grid.spacing.min())
        for factor, limit in zip(self.factors, self.limits, strict=True):
            level_fixed, level_moving = (at_level(image, factor, smallest=self.smallest) for image in (fixed, moving))
            grid = level_fixed.grid
            parameters = self.parametrization(fixed, grid) if parameters is None else parameters.refined(grid)
            rate = self.learning_rate * side * factor**self.rate_growth
            settings = Descent(limit, rate, self.tolerance, optimizer=self.optimizer, final_rate=self.final_rate)
            losses = self.search(parameters, level_fixed, level_moving, settings, initial=initial, on_step=on_step)
            history.append(LevelHistory(type(self).__name__, grid.shape, tuple(losses)))
        assert parameters is not None  # noqa: S101 - there is at least one level
        parameters.settle()
        return StageResult(parameters(fixed, moving).detach(), tuple(history))


def at_level(image: Image, factor: float, *, smallest: int = 8) -> Image:
    """Resample an image to ``factor`` times its finest voxel spacing, by averaging cells.

    Axes that are already coarser keep their samples, and no axis is reduced below ``smallest`` samples.
    """
    return resize_image(image, image.grid.coarsened(factor, smallest=smallest).shape)


class LinearStage(IterativeStage):
    """Stage that finds a translation, rigid motion, similarity or affine map about the fixed centroid.

    Args:
        objective: Objective to minimize; penalties of fields do not act on affine maps.
        kind: See :class:`LinearParametrization`.
        factors: See :class:`IterativeStage`.
        iterations: See :class:`IterativeStage`.
        learning_rate: See :class:`IterativeStage`.
        tolerance: See :class:`Descent`.
        rate_growth: See :class:`IterativeStage`.
        final_rate: See :class:`Descent`.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> objective = learnreg.Objective(learnreg.similarity.MSE())
        >>> stage = LinearStage(objective, "translation", factors=(1,), iterations=(40,))
        >>> transform = stage(fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
    """

    smallest = 16  # of fewer samples, the joint histogram of two images is mostly chance

    def __init__(
        self,
        objective: Objective,
        kind: LinearKind = "affine",
        *,
        factors: Sequence[float] = (4, 2),
        iterations: Sequence[int] = (60, 30),
        learning_rate: float = 0.5,
        tolerance: float = 0.01,
        rate_growth: float = 0.5,
        final_rate: float = 1.0,
    ) -> None:
        super().__init__(
            objective,
            factors,
            iterations,
            learning_rate=learning_rate,
            rate_growth=rate_growth,
            tolerance=tolerance,
            final_rate=final_rate,
        )
        self.kind = kind

    def parametrization(self, fixed: Image, grid: Grid) -> LinearParametrization:
        # Half of the object's size, if the object spans about half of the field of view's diagonal.
        radius = float(fixed.grid.extent[0].norm()) / 4
        return LinearParametrization(center_of_mass(fixed)[:1], radius, self.kind)


class FieldStage(IterativeStage):
    """Stage that finds a deformation, by any parametrization.

    Args:
        objective: Objective to minimize.
        parametrization: ``(grid, start) -> Parametrization``: a class whose other arguments are bound by
            ``functools.partial``, or by ``_partial_: true`` in a configuration. ``None`` is
            :class:`DenseParametrization`, a dense velocity.
        factors: See :class:`IterativeStage`.
        iterations: See :class:`IterativeStage`.
        learning_rate: See :class:`IterativeStage`.
        tolerance: See :class:`Descent`.
        features: ``Image -> Image`` whose channels are compared instead of the intensities.
        crop: Crop the fixed image to its content plus this many voxels, see :func:`learnreg.image.crop_to_content`;
            ``None`` does not crop. Outside of the crop, the field has its border value.
        optimizer: See :class:`IterativeStage`.

    Example:
        >>> from functools import partial
        >>> from learnreg.optimization import BSplineParametrization
        >>> penalty = learnreg.Penalty(learnreg.regularization.Diffusion(), 0.01)
        >>> objective = learnreg.Objective(learnreg.similarity.MSE(), {"diffusion": penalty})
        >>> stage = FieldStage(objective, partial(BSplineParametrization, spacing=8), factors=(2, 1), iterations=(9, 9))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> type(stage(image, image).transform).__name__
        'BSpline'
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a preset
        self,
        objective: Objective,
        parametrization: ParametrizationFactory | None = None,
        *,
        factors: Sequence[float] = (4, 2, 1),
        iterations: Sequence[int] = (60, 60, 30),
        learning_rate: float = 0.5,
        tolerance: float = 0.01,
        features: nn.Module | None = None,
        crop: int | None = None,
        optimizer: OptimizerFactory = Adam,
    ) -> None:
        super().__init__(
            objective, factors, iterations, learning_rate=learning_rate, tolerance=tolerance, optimizer=optimizer
        )
        self.make_parametrization = parametrization or DenseParametrization
        self.features, self.crop = features, crop

    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        check_pair(fixed, moving)  # before the features change the type
        if self.crop is not None:
            fixed = crop_to_content(fixed, margin=self.crop)
        if self.features is not None:
            fixed, moving = self.features(fixed), self.features(moving)
        return super().forward(fixed, moving, initial, on_step=on_step)

    def parametrization(self, fixed: Image, grid: Grid) -> Parametrization:
        return self.make_parametrization(grid, None)
