"""Similarity of learned or designed features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from learnreg.errors import InputTypeError
from learnreg.sampling import resize
from learnreg.similarity.base import Comparison, Similarity
from learnreg.similarity.mse import MSE
from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar


class FeatureSimilarity(Similarity):
    """Mean similarity of feature maps, ``mean_k similarity(features_k(warped), features_k(fixed))``.

    Args:
        extractor: ``(B, C, *grid) -> (B, K, *any)``, or a sequence of such maps: any module, such as a trained
            segmentation network or one of MONAI's. It is frozen and set to evaluation mode.
        similarity: Compares the maps; ``None`` is the mean squared error.

    Raises:
        InputTypeError: ``extractor`` returned neither a tensor nor a sequence of tensors.

    Example:
        >>> similarity = FeatureSimilarity(torch.nn.Conv3d(1, 4, 3))
        >>> image = torch.rand(1, 1, 8, 8, 8)
        >>> float(similarity(image, image))
        0.0
    """

    def __init__(self, extractor: nn.Module, similarity: Similarity | None = None) -> None:
        super().__init__()
        self.extractor = extractor.eval().requires_grad_(False)
        self.similarity = similarity or MSE()

    def train(self, mode: bool = True) -> FeatureSimilarity:
        super().train(mode)
        self.extractor.eval()
        return self

    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        return self.prepare(fixed, mask)(warped)

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        maps = feature_maps(self.extractor, fixed)
        comparisons = [self.similarity.prepare(features, _at(mask, features)) for features in maps]

        def compare(warped: ImageTensor) -> Scalar:
            pairs = zip(comparisons, feature_maps(self.extractor, warped), strict=True)
            return torch.stack([one(features) for one, features in pairs]).mean()

        return compare


def feature_maps(extractor: nn.Module, image: ImageTensor) -> tuple[Tensor, ...]:
    """Compute the feature maps of an image in full precision."""
    with torch.autocast(image.device.type, enabled=False):
        maps = extractor(image.to(torch.promote_types(image.dtype, torch.float32)))
    maps = (maps,) if isinstance(maps, Tensor) else maps
    if not isinstance(maps, Sequence) or not all(isinstance(m, Tensor) for m in maps):
        raise InputTypeError(
            f"FeatureSimilarity needs an extractor that returns feature maps, got {type(maps).__name__}; "
            "wrap it in a module that returns a tensor or a list of tensors."
        )
    return tuple(maps)


def _at(mask: MaskTensor | None, features: Float[Tensor, "B K *there"]) -> Shaped[Tensor, "B 1 *there"] | None:
    """Resample the mask to the resolution of a feature map."""
    if mask is None or mask.shape[2:] == features.shape[2:]:
        return mask
    return resize(mask.to(features.dtype), tuple(features.shape[2:]))
