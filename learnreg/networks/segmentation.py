"""Segmentation as an auxiliary task for the features of one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.networks.blocks import CONVOLUTIONS
from learnreg.numerics import full_precision
from learnreg.similarity.dice import one_hot
from learnreg.typing import LabelTensor, Scalar


class SegmentationHead(nn.Module):
    """Linear classifier of features into labels and background, with its loss.

    All labels that are not in ``values`` count as background.

    Args:
        ndim: 2 or 3.
        channels: Channels of the features.
        values: Label values, at least one, all different and not 0.

    Raises:
        InputError: ``values`` is empty, contains 0, or repeats a value.
    """

    def __init__(self, ndim: int, channels: int, values: Sequence[int]) -> None:
        super().__init__()
        self.values = [int(v) for v in values]
        if not self.values or 0 in self.values or len(set(self.values)) != len(self.values):
            raise InputError(f"segments must be at least one label, all different and not 0, got {self.values}.")
        self.conv = CONVOLUTIONS[ndim](channels, len(self.values) + 1, 1)

    @full_precision
    def forward(self, features: Tensor, labels: LabelTensor) -> Scalar:
        """Compute the loss: cross-entropy plus soft Dice.

        The targets are the shares of the labels in the voxels that a sample covers.

        Args:
            features: ``(B, C, *shape)``, at the resolution of ``labels`` or coarser.
            labels: ``(B, 1, *grid)``.

        Returns:
            Scalar, at least 0; lower is better.
        """
        from monai.losses import DiceCELoss  # only a training needs MONAI here

        members = F.interpolate(one_hot(labels, self.values, features.dtype), size=features.shape[2:], mode="area")
        shares = torch.cat([1 - members.sum(1, keepdim=True), members], dim=1)
        compare = DiceCELoss(softmax=True, include_background=False, squared_pred=True)
        loss: Scalar = compare(self.conv(features), shares)
        return loss
