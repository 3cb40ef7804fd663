"""Similarity of learned or designed features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.numerics import remembered
from learnreg.similarity.mse import MSE
from learnreg.typing import ImageTensor, MaskTensor, Scalar
from learnreg.warping import resize


class FeatureSimilarity(nn.Module):
    """``mean_k similarity(features_k(warped), features_k(fixed))``.

    Args:
        extractor: ``(B, C, *grid) -> (B, K, *any)``, or a sequence of such maps; any module, a
            trained segmentation network or MONAI's included. It is frozen and put into evaluation mode.
        similarity: Compares the maps; ``None`` is the mean squared error.

    Raises:
        TypeError: ``extractor`` returned neither a tensor nor tensors.
    """

    def __init__(self, extractor: nn.Module, similarity: nn.Module | None = None) -> None:
        super().__init__()
        self.extractor = extractor.eval().requires_grad_(False)
        self.similarity = similarity or MSE()

    def train(self, mode: bool = True) -> FeatureSimilarity:
        super().train(mode)
        self.extractor.eval()
        return self

    def forward(self, warped: ImageTensor, fixed: ImageTensor, mask: MaskTensor | None = None) -> Scalar:
        pairs = zip(feature_maps(self.extractor, warped), _maps_of_fixed(self.extractor, fixed), strict=True)
        return torch.stack([self.similarity(w, f, _at(mask, f)) for w, f in pairs]).mean()


def feature_maps(extractor: nn.Module, image: ImageTensor) -> tuple[Tensor, ...]:
    """The maps that ``extractor`` makes of an image, in full precision."""
    with torch.autocast(image.device.type, enabled=False):
        maps = extractor(image.to(torch.promote_types(image.dtype, torch.float32)))
    maps = (maps,) if isinstance(maps, Tensor) else maps
    if not isinstance(maps, Sequence) or not all(isinstance(m, Tensor) for m in maps):
        raise TypeError(
            f"FeatureSimilarity needs an extractor that returns feature maps, got {type(maps).__name__}; "
            "wrap it in a module that returns a tensor or a list of tensors."
        )
    return tuple(maps)


_maps_of_fixed = remembered(feature_maps)


def _at(mask: MaskTensor | None, features: Tensor) -> MaskTensor | None:
    """The mask at the resolution of a feature map."""
    if mask is None or mask.shape[2:] == features.shape[2:]:
        return mask
    return resize(mask.to(features.dtype), tuple(features.shape[2:]))
