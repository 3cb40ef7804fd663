"""Demons: updates from the difference of intensities instead of the gradient of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.dense import CompositiveParametrization
from learnreg.optimization.descent import Descent, Search
from learnreg.optimization.features import masked_gradient
from learnreg.optimization.iterative import IterativeStage
from learnreg.optimization.parametrization import Parametrization
from learnreg.sampling import Padding, sample_image
from learnreg.similarity import MSE
from learnreg.similarity.masking import both_masks, masked_mean
from learnreg.transforms import Transform, chain
from learnreg.typing import StepCallback

Force = Literal["fixed", "moving", "symmetric"]


class DemonsStage(IterativeStage):
    """Demons registration, for images with the same intensity scale.

    Each iteration computes a force per voxel, smooths it, composes it with the displacement, and smooths the result.
    The force is

    ``u = (f - w) g / (|g|^2 + (f - w)^2 / (2 s)^2)``,

    where ``f`` is the fixed and ``w`` the warped image, ``g`` is an image gradient, and ``s`` is the length that no
    force exceeds.

    Args:
        force: Gradient ``g``: of the ``"fixed"`` image (Thirion's demons), of the warped ``"moving"`` image, or
            ``"symmetric"``, the mean of both.
        factors: See :class:`IterativeStage`.
        iterations: See :class:`IterativeStage`.
        longest: ``s``, in voxels of the level.
        fluid: Sigma of the Gaussian that smooths the force, in voxels of the level.
        elastic: Sigma of the Gaussian that smooths the displacement, in voxels of the level.
        squarings: Number of squarings of the exponential of the force (diffeomorphic demons); 0 composes the force
            itself.
        tolerance: See :class:`Descent`; the loss is the mean squared error.

    Raises:
        InputError: The force is unknown.

    Source:
        Thirion, Image matching as a diffusion process, Med. Image Anal. 1998; Vercauteren et al., Diffeomorphic demons,
        NeuroImage 2009, eq. 4 and algorithm 2.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> transform = DemonsStage(factors=(2, 1), iterations=(40, 20))(fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
    """

    def __init__(
        self,
        force: Force = "symmetric",
        *,
        factors: Sequence[float] = (4, 2, 1),
        iterations: Sequence[int] = (60, 40, 20),
        longest: float = 0.5,
        fluid: float = 1.0,
        elastic: float = 1.0,
        squarings: int = 1,
        tolerance: float = 0.01,
    ) -> None:
        if force not in ("fixed", "moving", "symmetric"):
            raise InputError(f"Unknown force {force!r}; choose fixed, moving or symmetric.")
        super().__init__(Objective(MSE()), factors, iterations, learning_rate=longest, tolerance=tolerance)
        self.force, self.longest = force, float(longest)
        self.fluid, self.elastic, self.squarings = float(fluid), float(elastic), int(squarings)

    def parametrization(self, fixed: Image, grid: Grid) -> CompositiveParametrization:
        return CompositiveParametrization(grid, fluid=self.fluid, elastic=self.elastic, squarings=self.squarings)

    @torch.no_grad()
    def search(
        self,
        parameters: Parametrization,
        fixed: Image,
        moving: Image,
        settings: Descent,
        *,
        initial: Transform | None,
        on_step: StepCallback | None,
    ) -> list[float]:
        assert isinstance(parameters, CompositiveParametrization)  # noqa: S101 - from parametrization()
        side = float(fixed.grid.spacing.min())
        of_fixed = masked_gradient(fixed.data, fixed.grid, fixed.mask)
        run = Search([parameters.field], settings, on_step)
        while run.goes_on():
            points = chain(parameters(fixed, moving), initial).map_grid(fixed.grid)
            # Values beyond the border continue, so that no edge appears there; they count only without a mask.
            padding: Padding = "zeros" if moving.mask is None else "border"
            warped = sample_image(moving, points, fixed.grid, padding=padding)
            difference, mask = fixed.data - warped.data, both_masks(fixed.mask, warped.mask)
            of_warped = of_fixed if self.force == "fixed" else masked_gradient(warped.data, fixed.grid, warped.mask)
            gradient = (of_fixed + of_warped) / 2 if self.force == "symmetric" else of_warped
            run.record(masked_mean(difference.square(), mask))
            difference = difference if mask is None else difference * mask
            parameters.field.add_(demons_force(difference, gradient, self.longest * side))
            parameters.after_step(fixed)
        return run.finish()


def demons_force(difference: Tensor, gradient: Tensor, longest: float) -> Tensor:
    """Compute the demons force per voxel, averaged over the channels; see :class:`DemonsStage`.

    Args:
        difference: ``(B, C, *grid)``, fixed minus warped intensities.
        gradient: ``(B, C, D, *grid)``, per mm.
        longest: Length that no force exceeds, mm.

    Returns:
        ``(B, D, *grid)``, mm.
    """
    difference = difference.unsqueeze(2)
    bound = gradient.square().sum(2, keepdim=True) + (difference / (2 * longest)).square()
    return (difference * gradient / bound.clamp(min=1e-12)).mean(1)
