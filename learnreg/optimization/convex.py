"""Coupled convex discrete search for large displacements."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.optimization.features import SelfSimilarity
from learnreg.optimization.iterative import at_level
from learnreg.optimization.stage import Stage, StageResult, check_pair
from learnreg.sampling import resize, sample_image
from learnreg.search import consistent, coupled_search
from learnreg.transforms import Displacement, Transform
from learnreg.typing import StepCallback

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class ConvexStage(Stage):
    """Discrete search for a smooth displacement: an initial deformation for large displacements.

    The search scores every displacement within ``reach`` at every control point, so it also finds minima that gradient
    descent cannot reach. The cost ``c`` is the squared difference of features. For each coupling ``a``, in rising
    order, two steps alternate:

    1. Each control point chooses the displacement ``u`` that minimizes ``c(u) + a |u - v|^2``, where ``v`` is the
       smooth displacement at that point.
    2. ``v`` becomes the local mean of the chosen displacements.

    A higher coupling makes the displacement smoother.

    Args:
        features: ``Image -> Image`` whose channels are compared; ``None`` is MIND-SSC. Every control point counts, also
            outside of a mask: only features that ignore the values there, such as MIND-SSC, do not depend on them.
        factor: Spacing of the features, as a multiple of the finest voxel spacing.
        spacing: Spacing of the control points, in samples of the features.
        reach: Largest displacement along each axis, in control points; ``reach * spacing * factor`` in voxels.
        couplings: Values of ``a``, in units of the mean cost per squared control spacing.
        consistent: Also search from the moving to the fixed image, and make both results inverse-consistent.

    Raises:
        InputError: ``spacing`` or ``reach`` is less than 1.

    Source:
        Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014; Siebert et al., Fast
        3D registration with accurate optimisation and little learning for Learn2Reg 2021.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> transform = ConvexStage(spacing=2)(fixed, moving).transform
        >>> [round(x) for x in transform(torch.zeros(1, 1, 2)).flatten().tolist()]
        [2, 0]
    """

    def __init__(
        self,
        features: nn.Module | None = None,
        *,
        factor: float = 1.0,
        spacing: int = 4,
        reach: int = 3,
        couplings: tuple[float, ...] = COUPLINGS,
        consistent: bool = True,
    ) -> None:
        super().__init__()
        if spacing < 1 or reach < 1:
            raise InputError(f"ConvexStage needs a spacing and reach of at least 1, got {spacing} and {reach}.")
        self.features = SelfSimilarity() if features is None else features
        self.factor, self.spacing, self.reach = float(factor), int(spacing), int(reach)
        self.couplings, self.consistent = tuple(float(c) for c in couplings), consistent

    @torch.no_grad()
    def forward(
        self,
        fixed: Image,
        moving: Image,
        initial: Transform | None = None,
        *,
        on_step: StepCallback | None = None,
    ) -> StageResult:
        check_pair(fixed, moving)
        target, source = at_level(fixed, self.factor), at_level(moving, self.factor)
        grid = target.grid
        points = grid.points if initial is None else initial.map_grid(grid)
        source = sample_image(source, points, grid, padding="border")
        control = grid.resized([max(4, -(-n // self.spacing)) for n in grid.shape])
        first, second = (resize(self.features(image).data, control.shape) for image in (target, source))
        search = partial(coupled_search, grid=control, reach=self.reach, couplings=self.couplings)
        field = search(first, second)
        if self.consistent:
            field = consistent(field, search(second, first), control)
        return StageResult(Displacement(field, control))
