"""``Objective``: the one thing that solvers and networks minimize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.similarity.dice import dice_loss, one_hot
from learnreg.transforms import Transform, chain
from learnreg.typing import FieldTensor, MaskTensor, PointTensor, Scalar
from learnreg.warping import pull, sample


@dataclass(frozen=True, eq=False)
class Loss:
    """Outcome of an objective.

    Args:
        total: Scalar, the weighted sum.
        terms: Each term by name, without its weight.
        warped: The moving image on the fixed grid.
    """

    total: Scalar
    terms: dict[str, Tensor]
    warped: Image


class Penalty(nn.Module):
    """A regularizer with its weight.

    Args:
        regularizer: ``(field, grid) -> scalar``.
        weight: Factor in the objective, at least 0.
    """

    def __init__(self, regularizer: nn.Module, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"Penalty.weight must be at least 0, got {weight}.")
        self.regularizer, self.weight = regularizer, float(weight)

    def forward(self, fields: Sequence[tuple[FieldTensor, Grid]]) -> Scalar:
        return torch.stack([self.regularizer(field, grid) for field, grid in fields]).sum()


class LabelOverlap(nn.Module):
    """Supervision by segmentations: soft Dice of the warped moving labels.

    Args:
        labels: The values that count; background is left out.
        weight: Factor in the objective.
    """

    def __init__(self, labels: Sequence[int], weight: float = 1.0) -> None:
        super().__init__()
        if not labels:
            raise ValueError("LabelOverlap needs the label values that count, such as labels=[1, 2].")
        self.labels, self.weight = tuple(int(v) for v in labels), float(weight)

    def forward(self, fixed: Image, moving: Image, points: PointTensor, mask: MaskTensor | None) -> Scalar:
        """Dice loss at mapped ``points`` ``(B, *fixed.grid.shape, D)``."""
        if fixed.labels is None or moving.labels is None:
            raise ValueError(
                "The objective has label supervision but an image has no labels; "
                "give labels with every image or leave `supervision` out (objective.supervision=null)."
            )
        memberships = one_hot(moving.labels, self.labels, moving.data.dtype)
        warped = sample(memberships, moving.grid, points)
        return dice_loss(warped, one_hot(fixed.labels, self.labels, warped.dtype), mask)


class Objective(nn.Module):
    """``E(T) = D(fixed, moving o T) + sum_k w_k R_k(T)``, with optional supervision.

    Args:
        similarity: ``(warped, fixed, mask) -> scalar``, lower is better.
        penalties: Regularizers with their weights, by name.
        supervision: Overlap of labels, where both images have them.
    """

    def __init__(
        self,
        similarity: nn.Module,
        penalties: Mapping[str, Penalty] | None = None,
        supervision: LabelOverlap | None = None,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.penalties = nn.ModuleDict(dict(penalties or {}))
        self.supervision = supervision

    def forward(self, fixed: Image, moving: Image, transform: Transform, initial: Transform | None = None) -> Loss:
        """Score a transform.

        Args:
            fixed: The reference.
            moving: The image to align.
            transform: What is searched for; its fields are penalized.
            initial: Applied after ``transform``, composed without resampling and not penalized.

        Raises:
            ValueError: The images differ in dimension.
        """
        if fixed.ndim != moving.ndim:
            raise ValueError(
                f"fixed is {fixed.ndim}-D and moving is {moving.ndim}-D; register images of one dimension."
            )
        points = chain(transform, initial).map_grid(fixed.grid)
        warped = pull(Image(moving.data, moving.grid, moving.mask), points, fixed.grid)
        mask = _both(fixed.mask, warped.mask)
        terms: dict[str, Tensor] = {"similarity": self.similarity(warped.data, fixed.data, mask)}
        total = terms["similarity"]
        fields = transform.fields()
        if fields:
            for name, penalty in self.penalties.items():
                terms[name] = penalty(fields)
                total = total + float(penalty.weight) * terms[name]  # type: ignore[arg-type]
        if self.supervision is not None:
            terms["dice"] = self.supervision(fixed, moving, points, mask)
            total = total + self.supervision.weight * terms["dice"]
        return Loss(total, terms, warped)

    def unsupervised(self) -> Objective:
        """The same objective for images alone."""
        return Objective(self.similarity, dict(self.penalties.items()), None)  # type: ignore[arg-type]


def _both(first: MaskTensor | None, second: MaskTensor | None) -> MaskTensor | None:
    """Voxels that both masks count."""
    if first is None or second is None:
        return first if second is None else second
    return first.to(second.dtype) * second
