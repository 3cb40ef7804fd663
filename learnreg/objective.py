"""``Objective``: the one thing that solvers and networks minimize."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from learnreg.grid import Grid
from learnreg.image import Image, label_values
from learnreg.numerics import remembered
from learnreg.similarity.dice import dice_loss, one_hot
from learnreg.transforms import Transform, chain
from learnreg.typing import FieldTensor, ImageTensor, LabelTensor, MaskTensor, PointTensor, Scalar
from learnreg.warping import sample, warp


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
    """A regularizer with its weight, and what it acts on.

    Args:
        regularizer: ``(field, grid) -> scalar``; with ``where`` also the local weights.
        weight: Factor in the objective, at least 0.
        acts_on: ``"field"``, what carries the transform: a displacement, velocity or control points; or
            ``"displacement"``, where the transform takes each sample of the fixed grid, for what is
            said of the map itself, such as its Jacobian.
        where: Local factor as an image in the fixed space; ``None`` is 1 everywhere.

    Raises:
        ValueError: The weight is negative, or ``acts_on`` is unknown.
    """

    def __init__(
        self,
        regularizer: nn.Module,
        weight: float,
        *,
        acts_on: Literal["field", "displacement"] = "field",
        where: Image | None = None,
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"Penalty.weight must be at least 0, got {weight}.")
        if acts_on not in ("field", "displacement"):
            raise ValueError(f"A penalty acts on a field or on the displacement, not on {acts_on!r}.")
        self.regularizer, self.weight, self.acts_on, self.where = regularizer, float(weight), acts_on, where

    def forward(self, fields: Sequence[tuple[FieldTensor, Grid]]) -> Scalar:
        """Sum over the fields."""
        if self.where is None:
            return torch.stack([self.regularizer(field, grid) for field, grid in fields]).sum()
        local = [_resampled(self.where.data, self.where.grid, grid) for field, grid in fields]
        pairs = zip(fields, local, strict=True)
        return torch.stack([self.regularizer(field, grid, weight) for (field, grid), weight in pairs]).sum()


@remembered
def _resampled(data: ImageTensor, grid: Grid, onto: Grid) -> ImageTensor:
    return sample(data.to(onto.points), grid.to(onto.device), onto.points, padding="border")


class LabelOverlap(nn.Module):
    """Supervision by segmentations: soft Dice of the warped moving labels.

    Args:
        labels: The values that count; ``None`` is all that both images have, without the background 0.
        weight: Factor in the objective.
        sample: At most so many of them, drawn anew at each call: memberships of 138 labels at once fill a
            memory, and the mean of the draws is the mean of all. ``None`` takes all.

    Raises:
        ValueError: No labels, or a sample below 1.
    """

    def __init__(self, labels: Sequence[int] | None = None, weight: float = 1.0, *, sample: int | None = None) -> None:
        super().__init__()
        if labels is not None and not labels:
            raise ValueError("LabelOverlap needs the label values that count, such as labels=[1, 2], or labels=None.")
        if sample is not None and sample < 1:
            raise ValueError(f"LabelOverlap draws at least 1 label, got sample={sample}.")
        self.labels = None if labels is None else tuple(int(v) for v in labels)
        self.weight, self.sample = float(weight), sample

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if fixed.labels is None or moving.labels is None:
            raise ValueError(
                "The objective has label supervision but an image has no labels; "
                "give labels with every image or leave `supervision` out (objective.supervision=null)."
            )
        labels = self.chosen(fixed.labels, moving.labels)
        if not labels:
            return moving.data.new_zeros(())
        memberships = one_hot(moving.labels, labels, moving.data.dtype)
        warped = warp(Image(memberships, moving.grid), transform, fixed.grid).data
        return dice_loss(warped, one_hot(fixed.labels, labels, warped.dtype), mask)

    def chosen(self, fixed: LabelTensor, moving: LabelTensor) -> tuple[int, ...]:
        """The values that this call counts."""
        labels = self.labels
        if labels is None:
            labels = tuple(label_values(fixed, moving))
        if self.sample is None or len(labels) <= self.sample:
            return labels
        return tuple(labels[k] for k in torch.randperm(len(labels))[: self.sample].tolist())


class LandmarkDistance(nn.Module):
    """Supervision by landmarks: mean distance in mm of the mapped fixed ones to the moving ones.

    Args:
        weight: Factor in the objective, per mm.
        required: Images without landmarks are an error; otherwise the term is 0 for them.
    """

    def __init__(self, weight: float = 1.0, *, required: bool = True) -> None:
        super().__init__()
        self.weight, self.required = float(weight), required

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if not self.required and fixed.landmarks is None and moving.landmarks is None:
            return moving.data.new_zeros(())
        if fixed.landmarks is None or moving.landmarks is None or fixed.landmarks.shape != moving.landmarks.shape:
            raise ValueError(
                "The objective has landmark supervision but the images have no landmarks in pairs; "
                "give Image.landmarks of one length to both, NaN where one is not marked."
            )
        return landmark_loss(transform(fixed.landmarks.nan_to_num()), moving.landmarks, fixed.landmarks)


def landmark_loss(mapped: PointTensor, moving: PointTensor, fixed: PointTensor) -> Scalar:
    """Mean distance of ``mapped`` to ``moving`` ``(B, K, D)`` mm, over the landmarks marked in both images.

    Smooth within a micrometer of a match, where the distance has no gradient; 0 without landmarks.
    """
    marked = ~(moving.isnan() | fixed.isnan()).any(-1)
    square = (mapped - moving.nan_to_num()).square().sum(-1)
    distance = (square + 1e-6).sqrt() - 1e-3
    return (distance * marked).sum() / marked.sum().clamp(min=1)


class Objective(nn.Module):
    """``E(T) = D(fixed, moving o T) + sum_k w_k R_k(T)``, with optional supervision.

    A symmetric transform is scored where its two sides meet: ``D(fixed o S, moving o T)``.

    Args:
        similarity: ``(warped, fixed, mask) -> scalar``, lower is better.
        penalties: Regularizers with their weights, by name.
        supervision: Terms ``(fixed, moving, transform, mask) -> scalar`` with a ``weight``, by name:
            overlap of labels, distance of landmarks.
    """

    def __init__(
        self,
        similarity: nn.Module,
        penalties: Mapping[str, Penalty] | None = None,
        supervision: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.penalties = nn.ModuleDict(dict(penalties or {}))
        self.supervision = nn.ModuleDict(dict(supervision or {}))

    def forward(self, fixed: Image, moving: Image, transform: Transform, initial: Transform | None = None) -> Loss:
        """Score a transform.

        Args:
            fixed: The reference.
            moving: The image to align.
            transform: What is searched for; its fields are penalized.
            initial: Applied after ``transform``, composed without resampling and not penalized.

        Raises:
            ValueError: The images differ in dimension, or lack what the supervision needs.
        """
        if fixed.ndim != moving.ndim:
            raise ValueError(
                f"fixed is {fixed.ndim}-D and moving is {moving.ndim}-D; register images of one dimension."
            )
        grid = fixed.grid
        fixed_side, moving_side = transform.sides()
        to_moving = chain(moving_side, initial)
        warped = warp(Image(moving.data, moving.grid, moving.mask), to_moving, grid)
        reference = fixed
        if fixed_side is not None:
            reference = warp(Image(fixed.data, grid, fixed.mask), fixed_side, grid)
        mask = _both(reference.mask, warped.mask)
        terms: dict[str, Tensor] = {"similarity": self.similarity(warped.data, reference.data, mask)}
        total = terms["similarity"]
        for name, value in self._penalties(transform, grid).items():
            terms[name] = value
            total = total + float(self.penalties[name].weight) * value  # type: ignore[arg-type]
        whole = chain(transform, initial)
        for name, term in self.supervision.items():
            terms[name] = term(fixed, moving, whole, mask if fixed_side is None else fixed.mask)
            total = total + float(term.weight) * terms[name]  # type: ignore[arg-type]
        return Loss(total, terms, warped)

    def _penalties(self, transform: Transform, grid: Grid) -> dict[str, Scalar]:
        """Each penalty by name; none acts on a transform without fields."""
        fields = transform.fields()
        if not fields:
            return {}
        on = {"field": fields}
        if any(penalty.acts_on == "displacement" for penalty in self.penalties.values()):
            on["displacement"] = ((transform.sides()[1].displacement(grid), grid),)
        return {name: penalty(on[str(penalty.acts_on)]) for name, penalty in self.penalties.items()}

    def weighted(self, name: str, weight: float) -> Objective:
        """The same objective with another weight of one penalty.

        Raises:
            ValueError: There is no such penalty.
        """
        if name not in self.penalties:
            raise ValueError(f"The objective has no penalty {name!r}; it has {', '.join(self.penalties) or 'none'}.")
        other = copy.copy(self)
        changed = copy.copy(self.penalties[name])
        changed.weight = float(weight)  # type: ignore[assignment]
        other._modules = {**self._modules, "penalties": nn.ModuleDict({**self.penalties, name: changed})}
        return other

    def unsupervised(self) -> Objective:
        """The same objective for images alone."""
        return Objective(self.similarity, dict(self.penalties.items()))  # type: ignore[arg-type]


def _both(first: MaskTensor | None, second: MaskTensor | None) -> MaskTensor | None:
    """Voxels that both masks count."""
    if first is None or second is None:
        return first if second is None else second
    return first.to(second.dtype) * second
