"""``Objective``: what solvers and networks minimize."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from learnreg.errors import InputError, InputTypeError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.regularization.base import Regularizer
from learnreg.sampling import sample
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.masking import both_masks
from learnreg.supervision import Supervision
from learnreg.terms import Weighted, WeightedTerms
from learnreg.transforms import Transform, chain
from learnreg.typing import FieldTensor, MaskTensor, Scalar
from learnreg.warping import warp

OVERLAP = 0.2  # share of the smaller image that must be compared; with less, the loss rises steeply
NO_OVERLAP = 100.0  # added to the similarity without any overlap; more than the range of each similarity


@dataclass(frozen=True, eq=False)
class Loss:
    """Value of an objective.

    Args:
        total: Scalar, the weighted sum of the terms.
        terms: Each term by name, without its weight.
        warped: The moving image on the fixed grid.
    """

    total: Scalar
    terms: dict[str, Tensor]
    warped: Image


class Penalty(Weighted[Regularizer]):
    """A regularizer with its weight, and what it acts on.

    Args:
        term: The regularizer.
        weight: Factor in the objective, at least 0.
        acts_on: ``"field"`` penalizes what carries the transform: a displacement, velocity or control points.
            ``"displacement"`` penalizes the displacement of each sample of the fixed grid, of both sides of a symmetric
            transform; choose it for terms of the map itself, such as its Jacobian determinant.
        where: Local factor as an image in the fixed space; ``None`` is 1 everywhere.

    Raises:
        InputError: The weight is negative, or ``acts_on`` is unknown.
    """

    def __init__(
        self,
        term: Regularizer,
        weight: float,
        *,
        acts_on: Literal["field", "displacement"] = "field",
        where: Image | None = None,
    ) -> None:
        if not isinstance(term, Regularizer):
            raise InputTypeError(
                f"Penalty.term must be a learnreg.regularization.Regularizer, got {type(term).__name__}; "
                "derive a class from it and override forward(field, grid, weight)."
            )
        super().__init__(term, weight)
        if acts_on not in ("field", "displacement"):
            raise InputError(f"Penalty.acts_on must be 'field' or 'displacement', got {acts_on!r}.")
        self.acts_on, self.where = acts_on, where

    def local_weight(self, grid: Grid) -> Tensor | None:
        """Return ``where`` sampled on ``grid``, ``(B, 1, *grid.shape)``, or ``None`` without it."""
        if self.where is None:
            return None
        values, own = self.where.data.to(grid.points), self.where.grid.to(grid.device)
        return sample(values, own, grid.points, padding="border")


class Objective(nn.Module):
    """``E(T) = D(fixed, moving o T) + sum_k w_k R_k(T) + sum_k w_k S_k(fixed, moving, T)``.

    A symmetric transform is scored where its two sides meet: ``D(fixed o S, moving o T)``.

    With masks, ``D`` compares the voxels that both count. To move an image out of view must not pay: if these voxels
    are less than a fifth of the smaller image, ``D`` increases.

    Args:
        similarity: The data term ``D``; lower is better.
        penalties: Regularizers ``R`` with their weights, by name.
        supervision: Terms ``S`` of labels or landmarks with their weights, by name.

    Raises:
        InputTypeError: ``similarity`` is not a :class:`learnreg.similarity.Similarity`.

    Example:
        >>> from learnreg.similarity import MSE
        >>> from learnreg.transforms import Affine
        >>> image = Image(torch.rand(1, 1, 8, 8, 8), Grid.regular((8, 8, 8)))
        >>> float(Objective(MSE())(image, image, Affine.identity(3)).total) < 1e-9
        True
    """

    def __init__(
        self,
        similarity: Similarity,
        penalties: Mapping[str, Penalty] | None = None,
        supervision: Mapping[str, Weighted[Supervision]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(similarity, Similarity):
            raise InputTypeError(
                f"Objective.similarity must be a learnreg.similarity.Similarity, got {type(similarity).__name__}; "
                "derive a class from it and override forward(warped, fixed, mask)."
            )
        self.similarity = similarity
        self.penalties: WeightedTerms[Penalty] = WeightedTerms(penalties)
        self.supervision: WeightedTerms[Weighted[Supervision]] = WeightedTerms(supervision)

    def forward(self, fixed: Image, moving: Image, transform: Transform, initial: Transform | None = None) -> Loss:
        """Score a transform.

        Args:
            fixed: The reference.
            moving: The image to align.
            transform: What is searched for; its fields are penalized.
            initial: Applied after ``transform``, composed without resampling and not penalized.

        Raises:
            InputError: The images differ in dimension, or lack what the supervision needs.
        """
        return self.prepare(fixed, moving, initial)(transform)

    def prepare(self, fixed: Image, moving: Image, initial: Transform | None = None) -> PairObjective:
        """Return this objective for one pair, as a function of the transform.

        Use it where many transforms of a pair are scored: what depends on the fixed image alone is computed once.

        Args:
            fixed: The reference.
            moving: The image to align.
            initial: See :meth:`forward`.

        Raises:
            InputError: The images differ in dimension.
        """
        return PairObjective(self, fixed, moving, initial)

    def weighted(self, name: str, weight: float) -> Objective:
        """Return the same objective with another weight of one penalty.

        Raises:
            InputError: There is no such penalty.
        """
        if name not in self.penalties:
            raise InputError(f"The objective has no penalty {name!r}; it has {', '.join(self.penalties) or 'none'}.")
        other = copy.copy(self)
        penalties = {**dict(self.penalties.items()), name: self.penalties[name].with_weight(weight)}
        other._modules = {**self._modules, "penalties": WeightedTerms(penalties)}
        return other

    def unsupervised(self) -> Objective:
        """Return the same objective for images alone, without supervision."""
        return Objective(self.similarity, dict(self.penalties.items()))


class PairObjective:
    """An objective on one pair, as a function of the transform; see :meth:`Objective.prepare`.

    It lives as long as the level of a solver, and holds what the fixed image alone determines.

    Args:
        objective: What is minimized.
        fixed: The reference.
        moving: The image to align.
        initial: Applied after each transform, not penalized.

    Raises:
        InputError: The images differ in dimension.
    """

    def __init__(self, objective: Objective, fixed: Image, moving: Image, initial: Transform | None = None) -> None:
        if fixed.ndim != moving.ndim:
            raise InputError(
                f"fixed is {fixed.ndim}-D and moving is {moving.ndim}-D; register images of one dimension."
            )
        if fixed.mask is not None and bool((fixed.mask == 1).all()):
            fixed = replace(fixed, mask=None)  # every voxel counts anyway, and similarities are faster without a mask
            self._view: MaskTensor | None = torch.ones_like(fixed.data[:, :1])
        else:
            self._view = fixed.mask
        self.objective, self.fixed, self.moving, self.initial = objective, fixed, moving, initial
        self._smaller = torch.minimum(_counted_volume(fixed), _counted_volume(moving))
        self._comparison: Comparison | None = None
        self._local: dict[tuple[str, Grid], Tensor | None] = {}

    def __call__(self, transform: Transform) -> Loss:
        """Score a transform."""
        fixed, moving, grid = self.fixed, self.moving, self.fixed.grid
        fixed_side, moving_side = transform.sides()
        warped = warp(Image(moving.data, moving.grid, moving.mask), chain(moving_side, self.initial), grid)
        if fixed_side is None and warped.mask is None:
            mask = fixed.mask
            similarity = self._compare(warped)
        else:  # the reference or the mask differs for each transform
            reference = fixed
            if fixed_side is not None:
                reference = warp(Image(fixed.data, grid, self._view), fixed_side, grid)
            mask = both_masks(reference.mask, warped.mask)
            similarity = self.objective.similarity(warped.data, reference.data, mask)
            if mask is not None:
                similarity = similarity + self._without_overlap(mask)
        terms: dict[str, Tensor] = {"similarity": similarity}
        total = similarity
        for name, value in self._penalties(transform).items():
            terms[name] = value
            total = total + self.objective.penalties[name].weight * value
        whole = chain(transform, self.initial)
        for name, weighted in self.objective.supervision.items():
            terms[name] = weighted.term(fixed, moving, whole, mask if fixed_side is None else fixed.mask)
            total = total + weighted.weight * terms[name]
        return Loss(total, terms, warped)

    def _without_overlap(self, mask: MaskTensor) -> Scalar:
        """Return what is added if too little of the images is compared; it has no gradient, it only ranks."""
        compared = _counted_volume(Image(mask, self.fixed.grid, mask)) / self._smaller.clamp(min=1e-12)
        return (NO_OVERLAP * (1 - compared / OVERLAP).clamp(min=0)).mean()

    def _compare(self, warped: Image) -> Scalar:
        if self._comparison is None:
            self._comparison = self.objective.similarity.prepare(self.fixed.data, self.fixed.mask)
        return self._comparison(warped.data)

    def _penalties(self, transform: Transform) -> dict[str, Scalar]:
        """Each penalty by name; a transform without fields is not penalized."""
        fields, grid = transform.fields(), self.fixed.grid
        penalties = self.objective.penalties
        if not fields:
            return {}
        on = {"field": fields}
        if any(penalty.acts_on == "displacement" for _, penalty in penalties.items()):
            on["displacement"] = tuple(
                (side.displacement(grid), grid) for side in transform.sides() if side is not None
            )
        return {name: self._summed(name, penalty, on[penalty.acts_on]) for name, penalty in penalties.items()}

    def _summed(self, name: str, penalty: Penalty, fields: Sequence[tuple[FieldTensor, Grid]]) -> Scalar:
        """Sum of a regularizer over the fields of a transform."""
        if penalty.where is None:
            return torch.stack([penalty.term(field, grid) for field, grid in fields]).sum()
        values = []
        for field, grid in fields:
            if (name, grid) not in self._local:
                self._local[name, grid] = penalty.local_weight(grid)
            values.append(penalty.term(field, grid, self._local[name, grid]))
        return torch.stack(values).sum()


def _counted_volume(image: Image) -> Tensor:
    """Compute the volume that the mask of each image counts, or of its field of view, ``(B,)``, mm^D."""
    if image.mask is None:
        voxels = image.data.new_full((image.batch_size,), float(math.prod(image.grid.shape)))
    else:
        voxels = (image.mask != 0).to(image.data.dtype).flatten(1).sum(1)
    return voxels * image.grid.spacing.prod(1).to(voxels)
