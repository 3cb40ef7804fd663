"""The scores of a transform: agreement with what is known of a pair, and regularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.grid import Grid
from learnreg.image import Image, label_values
from learnreg.metrics.deformation import non_diffeomorphic_volume, regularity
from learnreg.metrics.landmarks import target_registration_error
from learnreg.metrics.overlap import dice_scores
from learnreg.metrics.surface import surface_scores
from learnreg.sampling import SeparableMap, separable_labels
from learnreg.transforms import Affine, Transform
from learnreg.typing import FieldTensor, LabelTensor


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a batch of pairs, one value per pair; ``None`` where the pairs lack what a score needs.

    Args:
        sd_log_jacobian: ``(B,)``, see :func:`sd_log_jacobian`.
        sd_log_jacobian_learn2reg: ``(B,)``, see :func:`sd_log_jacobian_learn2reg`; ``None`` for tiny grids.
        folding: ``(B,)`` in [0, 1], see :func:`folding_fraction`.
        labels: The values that are scored in at least one pair.
        dice_by_label: ``(B, len(labels))``; NaN for a label that one of the two images of a pair lacks.
        hd95_by_label: ``(B, len(labels))``, mm; NaN as above, and where the warped label is empty.
        assd_by_label: ``(B, len(labels))``, mm, see :func:`average_surface_distance`; NaN likewise.
        nsd_by_label: ``(B, len(labels))`` in [0, 1], see :func:`surface_dice`, within 1 mm; NaN as for Dice.
        landmark_errors: ``(B, K)``, mm; NaN for a landmark that is not marked in both images.
        error: ``(B,)``, mm, mean distance to the true transform over the labels or the mask of the fixed image.
        non_diffeomorphic_volume: ``(B,)``, see :func:`non_diffeomorphic_volume`; ``None`` for tiny grids, and where it
            was not asked for.
    """

    sd_log_jacobian: Tensor
    folding: Tensor
    sd_log_jacobian_learn2reg: Tensor | None = None
    labels: tuple[int, ...] = ()
    dice_by_label: Tensor | None = None
    hd95_by_label: Tensor | None = None
    assd_by_label: Tensor | None = None
    nsd_by_label: Tensor | None = None
    landmark_errors: Tensor | None = None
    error: Tensor | None = None
    non_diffeomorphic_volume: Tensor | None = None

    @property
    def dice(self) -> Tensor | None:
        """``(B,)`` in [0, 1], mean Dice over the labels of each pair; higher is better."""
        return None if self.dice_by_label is None else self.dice_by_label.nanmean(1)

    def row(self, index: int = 0) -> dict[str, Any]:
        """Return the scores of one pair by the names that tables and ``metrics.json`` use; NaN is left out."""
        row: dict[str, Any] = {}
        if self.error is not None:
            row["error_mm"] = float(self.error[index])
        if self.dice_by_label is not None:
            by_label = self.dice_by_label[index].tolist()
            known = {str(v): d for v, d in zip(self.labels, by_label, strict=True) if d == d}
            if known:
                row["dice"], row["dice_by_label"] = float(self.dice_by_label[index].nanmean()), known
        surfaces = (("hd95_mm", self.hd95_by_label), ("assd_mm", self.assd_by_label), ("nsd", self.nsd_by_label))
        row |= {name: float(scores[index].nanmean()) for name, scores in surfaces if scores is not None}
        if self.landmark_errors is not None:
            row["tre_mm"] = float(self.landmark_errors[index].nanmean())
        row["sd_log_jacobian"] = float(self.sd_log_jacobian[index])
        if self.sd_log_jacobian_learn2reg is not None:
            row["sd_log_jacobian_learn2reg"] = float(self.sd_log_jacobian_learn2reg[index])
        row["folding_percent"] = 100 * float(self.folding[index])
        if self.non_diffeomorphic_volume is not None:
            row["ndv_percent"] = 100 * float(self.non_diffeomorphic_volume[index])
        return {name: value for name, value in row.items() if value == value}


@torch.no_grad()
def score(
    fixed: Image,
    moving: Image,
    transform: Transform,
    *,
    truth: Transform | None = None,
    distances: bool = False,
    folds: bool = False,
) -> Scores:
    """Score a transform of a batch of pairs.

    Dice and surface distance count the labels that both images of a pair have before warping: a label that one of them
    lacks says nothing about the transform.

    Args:
        fixed: The reference, with labels or landmarks if they are known.
        moving: The image that was aligned, with labels or landmarks if they are known.
        transform: Points of the fixed space to points of the moving space.
        truth: The true transform, if it is known.
        distances: Compute distances between the surfaces of labels, which takes long for many labels.
        folds: Compute the non-diffeomorphic volume of a map that is not affine, 5 s for a brain at 1 mm.

    Returns:
        One value per pair.

    Example:
        >>> from learnreg.transforms import Affine
        >>> labels = torch.ones(1, 1, 8, 8, 8, dtype=torch.long)
        >>> image = learnreg.Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8)), labels=labels)
        >>> score(image, image, Affine.identity(3)).row()["dice"]
        1.0
    """
    grid = fixed.grid
    displacement = transform.displacement(grid).expand(fixed.batch_size, -1, *[-1] * grid.ndim)
    found: dict[str, Any] = {}
    if fixed.labels is not None and moving.labels is not None:
        pairs = zip(fixed.labels.split(1), moving.labels.split(1), strict=True)
        present = [set(label_values(*pair)) for pair in pairs]
        labels = sorted(set().union(*present))
        if labels:
            warped = separable_labels(moving, SeparableMap(displacement, (None,) * grid.ndim), grid)
            known = torch.tensor([[v in own for v in labels] for own in present], device=warped.device)
            found["labels"] = tuple(labels)
            found["dice_by_label"] = dice_scores(warped, fixed.labels, labels).where(known, torch.nan)
            if distances:
                found |= _surface_scores(warped, fixed.labels, grid, labels, known.cpu())
    if fixed.landmarks is not None and moving.landmarks is not None:
        found["landmark_errors"] = target_registration_error(transform, fixed.landmarks, moving.landmarks)
    if truth is not None:
        found["error"] = _error(fixed, displacement, truth)
    found |= vars(regularity(displacement, grid))
    if folds and isinstance(transform, Affine):  # it folds everywhere or nowhere
        reflected = -torch.linalg.det(transform.matrix).to(displacement)
        found["non_diffeomorphic_volume"] = reflected.clamp(min=0).expand(fixed.batch_size)
    elif folds and min(grid.shape) >= 3:
        found["non_diffeomorphic_volume"] = non_diffeomorphic_volume(displacement, grid)
    return Scores(**found)


def _surface_scores(
    warped: LabelTensor, fixed: LabelTensor, grid: Grid, labels: Sequence[int], known: Tensor
) -> dict[str, Tensor]:
    """Score the surfaces of the labels that both images had before warping."""
    scores = surface_scores(warped, fixed, grid, labels)
    named = {"hd95_by_label": scores.hausdorff95, "assd_by_label": scores.average, "nsd_by_label": scores.dice}
    return {name: values.where(known, torch.nan) for name, values in named.items()}


def _error(fixed: Image, displacement: FieldTensor, truth: Transform) -> Tensor:
    """``(B,)`` mean distance to the truth, mm, over the labels or the mask of the fixed image, else everywhere."""
    distance = (displacement - truth.displacement(fixed.grid)).norm(dim=1).flatten(1)
    inside = fixed.labels if fixed.labels is not None else fixed.mask
    if inside is None:
        return distance.mean(1)
    counted = (inside[:, 0] > 0).flatten(1).to(distance.dtype)
    return (distance * counted).sum(1) / counted.sum(1)
