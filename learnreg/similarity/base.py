"""The interface of a similarity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from learnreg.typing import BroadcastImage, ImageTensor, MaskTensor, Scalar

Comparison: TypeAlias = Callable[[ImageTensor], Scalar]


class Similarity(nn.Module):
    """How much a warped image differs from the fixed image; lower is better.

    Override :meth:`forward`. Override :meth:`prepare` as well if part of the work depends on the fixed image alone.

    Example:
        >>> class Absolute(Similarity):
        ...     def forward(self, warped, fixed, mask=None):
        ...         return (warped - fixed).abs().mean()
        >>> float(Absolute()(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)))
        1.0
    """

    @abstractmethod
    def forward(self, warped: ImageTensor, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Scalar:
        """Compare two images on one grid.

        Args:
            warped: ``(B, C, *grid)``, the moving image on the fixed grid.
            fixed: ``(B, C, *grid)``.
            mask: ``(B, 1, *grid)``, weights of the voxels; ``None`` counts every voxel.

        Returns:
            A scalar, differentiable in both images.
        """

    def prepare(self, fixed: BroadcastImage, mask: MaskTensor | None = None) -> Comparison:
        """Return this similarity for one fixed image and mask, as a function of the warped image.

        A solver calls it once per level, so what depends on the fixed image alone is computed once.

        Args:
            fixed: ``(B, C, *grid)``.
            mask: ``(B, 1, *grid)``; see :meth:`forward`.

        Returns:
            ``warped -> scalar``, equal to ``self(warped, fixed, mask)``.
        """
        return lambda warped: self(warped, fixed, mask)
