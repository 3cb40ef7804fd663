"""Inverse consistency: two maps, there and back, that should be each other's inverse."""

from __future__ import annotations

from torch import nn

from learnreg.grid import Grid
from learnreg.numerics import full_precision
from learnreg.regularization.diffusion import diffusion_loss
from learnreg.transforms import Transform, chain
from learnreg.typing import Scalar


@full_precision
def inverse_consistency_loss(forward: Transform, backward: Transform, grid: Grid) -> Scalar:
    """Mean over the grid of ``|backward(forward(x)) - x|^2``, in mm^2.

    Args:
        forward: From the space of ``grid``.
        backward: Back to it.
        grid: Where it is measured.

    Source:
        Christensen and Johnson, Consistent image registration, IEEE TMI 2001.
    """
    return chain(forward, backward).displacement(grid).square().sum(1).mean()


@full_precision
def gradicon_loss(forward: Transform, backward: Transform, grid: Grid) -> Scalar:
    """Mean of ``|d(backward o forward)/dx - I|^2``, dimensionless: a common translation is free.

    Args:
        forward: From the space of ``grid``.
        backward: Back to it.
        grid: Where it is measured.

    Source:
        Tian et al., GradICON: approximate diffeomorphisms via gradient inverse consistency, CVPR 2023.
    """
    return diffusion_loss(chain(forward, backward).displacement(grid), grid)


class InverseConsistency(nn.Module):
    """Inverse consistency of a pair of transforms, see :func:`inverse_consistency_loss`.

    Args:
        weight: Factor in a training's objective, per mm^2.
        through: A training asks for the way back by way of so many other images of the batch: a cycle of unpaired
            images. 0 is the direct way.

    Source:
        For cycles: Gu et al., Pair-wise and group-wise deformation consistency in deep registration network,
        MICCAI 2020.
    """

    def __init__(self, weight: float = 1.0, *, through: int = 0) -> None:
        super().__init__()
        self.weight, self.through = float(weight), int(through)

    def forward(self, forward: Transform, backward: Transform, grid: Grid) -> Scalar:
        return inverse_consistency_loss(forward, backward, grid)


class GradICON(nn.Module):
    """Inverse consistency of the gradients, see :func:`gradicon_loss`.

    Args:
        weight: Factor in a training's objective.
        through: See :class:`InverseConsistency`.
    """

    def __init__(self, weight: float = 1.0, *, through: int = 0) -> None:
        super().__init__()
        self.weight, self.through = float(weight), int(through)

    def forward(self, forward: Transform, backward: Transform, grid: Grid) -> Scalar:
        return gradicon_loss(forward, backward, grid)
