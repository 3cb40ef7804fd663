"""Stages: the interface, the result, and running them in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, ItemsView, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.transforms import Affine, Transform, chain
from learnreg.typing import StepCallback


@dataclass(frozen=True)
class LevelHistory:
    """Losses of one level of a stage.

    Args:
        stage: Name of the stage's class.
        shape: Shape of the level's fixed grid, array order.
        losses: Loss at each evaluation of the objective.

    Example:
        >>> LevelHistory("FieldStage", (64, 64, 64), (0.5, 0.25)).losses[-1]
        0.25
    """

    stage: str
    shape: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class StageResult:
    """Result of a stage.

    Args:
        transform: Transform that the stage found; ``initial`` is not included.
        history: Losses of each level, empty for a stage without iterations.

    Example:
        >>> StageResult(learnreg.Affine.identity(3)).history
        ()
    """

    transform: Transform
    history: tuple[LevelHistory, ...] = ()


class Stage(nn.Module):
    """Part of a method that improves the alignment of one pair, such as an affine or a deformable registration.

    Derive a class and override :meth:`forward`, and :attr:`iterations` if it iterates.

    Example:
        >>> class Mirror(Stage):
        ...     def forward(self, fixed, moving, initial=None, *, on_step=None):
        ...         return StageResult(learnreg.Affine(torch.diag(torch.tensor([-1.0, 1.0, 1.0]))))
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8), learnreg.Grid.regular((8, 8)))
        >>> Mirror()(image, image).transform(torch.ones(1, 1, 2))
        tensor([[[-1.,  1.]]])
    """

    is_start = False
    """Whether the stage finds where to start. A method that is given an initial transform leaves such stages out."""

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
            fixed: The reference, a batch of one image.
            moving: The image to align, a batch of one image.
            initial: Transform that earlier stages found; it is applied after ``T``.
            on_step: Called with the number of iterations since its last call.

        Returns:
            ``T``, without ``initial``, and the losses.

        Raises:
            InputError: The stage cannot align this pair.
        """

    @property
    def iterations(self) -> int:
        """Maximum number of iterations, for progress bars; 0 for a stage without iterations."""
        return 0


def check_pair(fixed: Image, moving: Image) -> None:
    """Raise ``InputError`` unless the images are one pair, in float32 or float64."""
    if fixed.batch_size != 1 or moving.batch_size != 1:
        raise InputError(
            f"A stage finds the transform of one pair, got batches of {fixed.batch_size} and {moving.batch_size}; "
            "run it on the pairs one by one."
        )
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.data.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"A stage needs images in float32 or float64, {name} is in {image.data.dtype}; convert it, such as by "
                "image.to(torch.float32)."
            )


class StageDict(nn.ModuleDict):
    """Stages by name, in the order in which they run.

    Args:
        stages: Stages by name.

    Example:
        >>> from learnreg.optimization import CenterOfMass, CenterOfView
        >>> list(StageDict({"view": CenterOfView(), "mass": CenterOfMass()}))
        ['view', 'mass']
    """

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        super().__init__(dict(stages))

    def values(self) -> ValuesView[Stage]:  # type: ignore[override]
        return cast("ValuesView[Stage]", super().values())

    def items(self) -> ItemsView[str, Stage]:  # type: ignore[override]
        return cast("ItemsView[str, Stage]", super().items())

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
    """Run stages in order; each stage starts from the result of the stages before it.

    Args:
        stages: Stages to run.
        fixed: The reference, a batch of one image.
        moving: The image to align, a batch of one image.
        initial: Transform to start from; ``None`` is the identity.
        on_step: Called with the number of iterations since its last call.

    Returns:
        The composition of all transforms, including ``initial``, and the losses of all stages.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> from learnreg.optimization import CenterOfMass, CenterOfView
        >>> transform = run_stages([CenterOfView(), CenterOfMass()], fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
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
    """Return the transform that applies ``found`` first, then ``initial``; two affine maps become one."""
    if isinstance(found, Affine) and isinstance(initial, Affine):
        return found.then(initial)
    return chain(found, initial)
