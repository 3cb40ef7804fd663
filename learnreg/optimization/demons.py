"""Demons: forces from the difference of intensities instead of the gradient of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import InputError
from learnreg.fields import image_gradient
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization.dense import CompositiveParametrization
from learnreg.optimization.descent import Descent, Search
from learnreg.optimization.iterative import IterativeStage
from learnreg.optimization.parametrization import Parametrization
from learnreg.sampling import sample_image
from learnreg.similarity import MSE
from learnreg.transforms import Transform, chain
from learnreg.typing import StepCallback

Force = Literal["fixed", "moving", "symmetric"]


class DemonsStage(IterativeStage):
    """Demons: a force per voxel is smoothed and composed with the field, and the field is smoothed.

    ``u = (f - w) g / (|g|^2 + (f - w)^2 / (2 s)^2)``, where ``g`` is the gradient of one of the images or the mean of
    both, and ``s`` is the longest force. For images of one intensity scale.

    Args:
        force: ``"fixed"`` (Thirion's), ``"moving"``, or ``"symmetric"``.
        factors: See :class:`IterativeStage`.
        iterations: See :class:`IterativeStage`.
        longest: ``s`` in voxels of the level.
        fluid: Sigma of the smoothing of the update, in voxels of the level.
        elastic: Sigma of the smoothing of the field, in voxels of the level.
        squarings: Squarings of the exponential of the update (diffeomorphic demons); 0 composes the update itself.
        tolerance: See :class:`Descent`; the loss is the mean squared error.

    Raises:
        InputError: The force is unknown.

    Source:
        Thirion, Image matching as a diffusion process, Med. Image Anal. 1998; Vercauteren et al., Diffeomorphic demons,
        NeuroImage 2009, eq. 4 and algorithm 2.
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
        of_fixed = image_gradient(fixed.data, fixed.grid)
        run = Search([parameters.field], settings, on_step)
        while run.goes_on():
            points = chain(parameters(fixed, moving), initial).map_grid(fixed.grid)
            warped = sample_image(moving, points, fixed.grid)
            difference = fixed.data - warped.data
            of_warped = of_fixed if self.force == "fixed" else image_gradient(warped.data, fixed.grid)
            gradient = (of_fixed + of_warped) / 2 if self.force == "symmetric" else of_warped
            for mask in (fixed.mask, warped.mask):
                difference = difference if mask is None else difference * mask.to(difference.dtype)
            run.record(difference.square().mean())
            parameters.field.add_(demons_force(difference, gradient, self.longest * side))
            parameters.after_step(fixed)
        return run.finish()


def demons_force(difference: Tensor, gradient: Tensor, longest: float) -> Tensor:
    """Compute the force per voxel, averaged over the channels.

    Args:
        difference: ``(B, C, *grid)``, fixed minus warped.
        gradient: ``(B, C, D, *grid)``, per mm.
        longest: Upper bound of the forces, mm.

    Returns:
        ``(B, D, *grid)``, mm.
    """
    difference = difference.unsqueeze(2)
    bound = gradient.square().sum(2, keepdim=True) + (difference / (2 * longest)).square()
    return (difference * gradient / bound.clamp(min=1e-12)).mean(1)
