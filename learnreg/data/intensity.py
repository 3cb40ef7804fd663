"""Intensity transforms of MONAI, and several augmentations in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from learnreg.data.datasets import Augmentation
from learnreg.errors import InputError
from learnreg.image import Image


class Intensity(nn.Module):
    """Change intensities by a transform of MONAI; grid, mask, labels and landmarks stay.

    Args:
        transform: A transform of one array ``(C, *grid.shape)``, such as ``monai.transforms.RandBiasField()``. One that
            draws is seeded from torch's generator, so that the seed of a training decides.
        clamp: Keep intensities in [0, 1], as all images of a training.

    Raises:
        InputError: The transform returns another shape, or values that are not finite: it is no transform of
            intensities.

    Example:
        >>> from monai.transforms import RandGaussianNoise
        >>> image = Image(torch.rand(1, 1, 8, 8, 8), learnreg.Grid.regular((8, 8, 8)))
        >>> noise = Intensity(RandGaussianNoise(prob=1.0, std=0.05))
        >>> bool((noise(image).data != image.data).any())
        True
    """

    def __init__(self, transform: Callable[[Any], Any], *, clamp: bool = True) -> None:
        super().__init__()
        self.transform, self.clamp = transform, clamp

    def forward(self, image: Image) -> Image:
        """Change each image of a batch; each draws its own."""
        changed = torch.stack([self._changed(data) for data in image.data])
        if changed.shape != image.data.shape or not bool(changed.isfinite().all()):
            raise InputError(
                f"{type(self.transform).__name__} made {tuple(changed.shape)} of {tuple(image.data.shape)}, or values "
                "that are not finite; give a transform that changes intensities only."
            )
        return image.with_data(changed.clamp(0, 1) if self.clamp else changed)

    def _changed(self, data: torch.Tensor) -> torch.Tensor:
        from monai.transforms import Randomizable

        if isinstance(self.transform, Randomizable):  # MONAI draws from numpy
            self.transform.set_random_state(seed=int(torch.randint(2**31, ())))
        changed = torch.as_tensor(self.transform(data.clone()))
        return changed.as_subclass(torch.Tensor).to(data)  # type: ignore[arg-type]


class Compose(nn.Module):
    """Apply augmentations one after the other.

    Args:
        augmentations: ``image -> image``, such as :class:`RandomTransform` and :class:`Intensity`.
    """

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.augmentations = list(augmentations)

    def forward(self, image: Image) -> Image:
        """Change an image; the draws are from torch's generator."""
        for augmentation in self.augmentations:
            image = augmentation(image)
        return image
