"""Inverse consistency: two maps, there and back, should be each other's inverse."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.diffusion import diffusion_loss
from learnreg.transforms import Transform, chain
from learnreg.typing import Scalar


@full_precision
def inverse_consistency_loss(forward: Transform, backward: Transform, grid: Grid) -> Scalar:
    """Compute the mean over the grid of ``|backward(forward(x)) - x|^2``, mm^2.

    Args:
        forward: From the space of ``grid``.
        backward: Back to it.
        grid: Where it is measured.

    Returns:
        A scalar, 0 if ``backward`` is the inverse of ``forward``.

    Source:
        Christensen and Johnson, Consistent image registration, IEEE TMI 2001.
    """
    return chain(forward, backward).displacement(grid).square().sum(1).mean()


@full_precision
def gradicon_loss(forward: Transform, backward: Transform, grid: Grid) -> Scalar:
    """Compute the mean of ``|d(backward o forward)/dx - I|^2``, dimensionless; a common translation is not penalized.

    Args:
        forward: From the space of ``grid``.
        backward: Back to it.
        grid: Where it is measured.

    Returns:
        A scalar, 0 if ``backward`` is the inverse of ``forward`` up to a translation.

    Source:
        Tian et al., GradICON: approximate diffeomorphisms via gradient inverse consistency, CVPR 2023.
    """
    return diffusion_loss(chain(forward, backward).displacement(grid), grid)


class Consistency(nn.Module):
    """A term of a training: how far the network's answers there and back are from undoing each other.

    Args:
        through: Number of other images of the batch that the way back passes: a cycle of unpaired images. 0 is the
            direct way.
    """

    def __init__(self, *, through: int = 0) -> None:
        super().__init__()
        self.through = int(through)

    @abstractmethod
    def forward(self, there: Transform, back: Transform, grid: Grid) -> Scalar:
        """Score two transforms.

        Args:
            there: From the fixed to the moving space.
            back: From the moving to the fixed space.
            grid: The fixed grid, where the composition is measured.

        Returns:
            A scalar, 0 if ``back`` is the inverse of ``there``.
        """


class InverseConsistency(Consistency):
    """Inverse consistency of two transforms, see :func:`inverse_consistency_loss`.

    Args:
        through: See :class:`Consistency`.

    Source:
        For cycles: Gu et al., Pair-wise and group-wise deformation consistency in deep registration network, MICCAI
            2020.
    """

    def forward(self, there: Transform, back: Transform, grid: Grid) -> Scalar:
        return inverse_consistency_loss(there, back, grid)


class GradICON(Consistency):
    """Inverse consistency of the gradients, see :func:`gradicon_loss`.

    Args:
        through: See :class:`Consistency`.
    """

    def forward(self, there: Transform, back: Transform, grid: Grid) -> Scalar:
        return gradicon_loss(there, back, grid)
