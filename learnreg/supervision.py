"""Supervision: terms of an objective that use labels or landmarks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.image import Image, label_values
from learnreg.similarity.dice import dice_loss, one_hot
from learnreg.transforms import Transform
from learnreg.typing import LabelTensor, MaskTensor, PointTensor, Scalar
from learnreg.warping import warp


class Supervision(nn.Module):
    """A term that sees both images whole, with their labels and landmarks. Override :meth:`forward`.

    Attributes:
        needs: What every image must have, so that a training can check it before it starts: ``"labels"``,
            ``"landmarks"``.
    """

    needs: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        """Score a transform by what is known of the images.

        Args:
            fixed: The reference, with what the term needs.
            moving: The image to align, with what the term needs.
            transform: Points of the fixed space to points of the moving space.
            mask: ``(B, 1, *grid)``, weights of the voxels of the fixed grid; ``None`` counts every voxel.

        Returns:
            A scalar, lower is better, differentiable in the transform.

        Raises:
            InputError: An image lacks what the term needs.
        """


class LabelOverlap(Supervision):
    """Soft Dice of the warped moving labels and the fixed labels.

    Args:
        labels: Label values to use; ``None`` uses all that both images have, without the background 0.
        sample: Maximum number of labels per call, drawn at random. The memberships of 138 labels at once fill a memory;
            the mean over the draws is the mean over all labels. ``None`` uses all.

    Raises:
        InputError: ``labels`` is empty, or ``sample`` is below 1.
    """

    needs = ("labels",)

    def __init__(self, labels: Sequence[int] | None = None, *, sample: int | None = None) -> None:
        super().__init__()
        if labels is not None and not labels:
            raise InputError("LabelOverlap needs the label values that count, such as labels=[1, 2], or labels=None.")
        if sample is not None and sample < 1:
            raise InputError(f"LabelOverlap draws at least 1 label, got sample={sample}.")
        self.labels = None if labels is None else tuple(int(v) for v in labels)
        self.sample = sample

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if fixed.labels is None or moving.labels is None:
            raise InputError(
                "The objective has label supervision but an image has no labels; "
                "give labels with every image or leave `supervision` out (objective.supervision=null)."
            )
        labels = self.chosen(fixed.labels, moving.labels)
        if not labels:
            return moving.data.new_zeros(())
        memberships = one_hot(moving.labels, labels, moving.data.dtype)
        warped = warp(Image(memberships, moving.grid), transform, fixed.grid).data
        return dice_loss(warped, one_hot(fixed.labels, labels, warped.dtype), mask)

    def chosen(self, fixed: LabelTensor, moving: Int[Tensor, "B 1 *moving"]) -> tuple[int, ...]:
        """Return the label values that this call uses."""
        labels = self.labels
        if labels is None:
            labels = tuple(label_values(fixed, moving))
        if self.sample is None or len(labels) <= self.sample:
            return labels
        return tuple(labels[k] for k in torch.randperm(len(labels))[: self.sample].tolist())


class LandmarkDistance(Supervision):
    """Mean distance in mm of the mapped fixed landmarks to the moving landmarks.

    Args:
        required: If ``True``, images without landmarks are an error; otherwise the term is 0 for them.
    """

    def __init__(self, *, required: bool = True) -> None:
        super().__init__()
        self.required = required
        self.needs = ("landmarks",) if required else ()

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if not self.required and fixed.landmarks is None and moving.landmarks is None:
            return moving.data.new_zeros(())
        if fixed.landmarks is None or moving.landmarks is None or fixed.landmarks.shape != moving.landmarks.shape:
            raise InputError(
                "The objective has landmark supervision but the images have no landmarks in pairs; "
                "give Image.landmarks of one length to both, NaN where one is not marked."
            )
        return landmark_loss(transform(fixed.landmarks.nan_to_num()), moving.landmarks, fixed.landmarks)


def landmark_loss(mapped: PointTensor, moving: PointTensor, fixed: PointTensor) -> Scalar:
    """Compute the mean distance of ``mapped`` to ``moving`` in mm, over the landmarks marked in both images.

    The distance is smoothed within a micrometer of 0, where it has no gradient.

    Args:
        mapped: ``(B, K, D)``, mm.
        moving: ``(B, K, D)``, mm, NaN where not marked.
        fixed: ``(B, K, D)``, NaN where not marked.

    Returns:
        A scalar, 0 without landmarks.
    """
    marked = ~(moving.isnan() | fixed.isnan()).any(-1)
    square = (mapped - moving.nan_to_num()).square().sum(-1)
    distance = (square + 1e-6).sqrt() - 1e-3
    return (distance * marked).sum() / marked.sum().clamp(min=1)
