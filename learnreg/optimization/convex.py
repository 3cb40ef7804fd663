"""Coupled convex discrete search: an initial deformation for large displacements."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.fields import compose
from learnreg.grid import Grid, linear_map
from learnreg.image import Image
from learnreg.optimization.features import SelfSimilarity
from learnreg.optimization.iterative import at_level
from learnreg.optimization.stage import Stage, StageResult
from learnreg.sampling import resize, sample_image
from learnreg.separable import apply_separable, box_matrix
from learnreg.transforms import Displacement, Transform
from learnreg.typing import FieldTensor, StepCallback

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class ConvexStage(Stage):
    """Discrete search over all displacements up to a reach at each control point, made smooth by a rising coupling.

    A gradient only sees the nearest minimum; the search sees them all. Its cost is the squared difference of features.
    It alternates between two convex problems: each point chooses the displacement with the lowest cost plus coupling
    times squared distance to its neighborhood, and the neighborhood becomes the local mean of the choices. As the
    coupling rises, the choices agree with their neighborhoods. Both directions are searched and made consistent.

    Args:
        features: ``Image -> Image`` whose channels are matched; ``None`` is MIND-SSC.
        factor: Spacing of the features in units of the finest voxel side.
        spacing: Of the control points, in samples of the features.
        reach: Of the search, in control points: ``reach * spacing * factor`` voxels.
        couplings: Weights of the squared distance to the neighborhood, in units of the mean cost.
        consistent: Search both directions.

    Source:
        Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014; Siebert et al., Fast
        3D registration with accurate optimisation and little learning for Learn2Reg 2021.
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
        target, source = at_level(fixed, self.factor), at_level(moving, self.factor)
        grid = target.grid
        points = grid.points if initial is None else initial.map_grid(grid)
        source = sample_image(source, points, grid, padding="border")
        control = grid.resized([max(4, -(-n // self.spacing)) for n in grid.shape])
        first, second = (resize(self.features(image).data, control.shape) for image in (target, source))
        field = self.search(first, second, control)
        if self.consistent:
            field = consistent(field, self.search(second, first, control), control)
        return StageResult(Displacement(field, control))

    def search(self, fixed: Tensor, moving: Tensor, grid: Grid) -> FieldTensor:
        """Return the displacement with the lowest coupled cost, ``(1, D, *grid.shape)``, mm.

        Args:
            fixed: ``(1, C, *grid.shape)`` features.
            moving: ``(1, C, *grid.shape)`` features.
            grid: The control points.
        """
        steps = list(product(range(-self.reach, self.reach + 1), repeat=grid.ndim))  # array order
        costs = matching_costs(fixed, moving, steps, self.reach)
        costs = costs / costs.mean().clamp(min=1e-12)
        offsets = torch.tensor(steps, dtype=fixed.dtype, device=fixed.device)  # (K, D)
        boxes = [box_matrix(n, 3, fixed) for n in grid.shape]
        flat = costs.flatten(1)  # (K, P)
        neighborhood = apply_separable(offsets[flat.argmin(0)].T.reshape(-1, *grid.shape), boxes)
        for coupling in self.couplings:
            apart = (offsets.square().sum(1)[:, None] - 2 * offsets @ neighborhood.flatten(1)).add_(
                neighborhood.flatten(1).square().sum(0)
            )
            chosen = offsets[(flat + coupling * apart).argmin(0)]
            neighborhood = apply_separable(chosen.T.reshape(-1, *grid.shape), boxes)
        return linear_map(grid.affine[:1], neighborhood.flip(0).unsqueeze(0))  # components (x, y, z)


def matching_costs(fixed: Tensor, moving: Tensor, steps: list[tuple[int, ...]], reach: int) -> Tensor:
    """Compute the mean over the channels of ``(fixed(x) - moving(x + step))^2``, averaged over 3 points per axis.

    Args:
        fixed: ``(1, C, *grid)`` features.
        moving: ``(1, C, *grid)`` features.
        steps: ``K`` displacements in samples, array order.
        reach: Largest displacement.

    Returns:
        ``(K, *grid)``.
    """
    shape = fixed.shape[2:]
    padded = F.pad(moving, [reach] * (2 * len(shape)), mode="replicate")
    costs = []
    for step in steps:
        shifted = padded
        for axis, (s, n) in enumerate(zip(step, shape, strict=True)):
            shifted = shifted.narrow(axis + 2, reach + s, n)
        costs.append((fixed - shifted).square().mean(1))
    return apply_separable(torch.cat(costs), [box_matrix(n, 3, fixed) for n in shape])


def consistent(there: FieldTensor, back: FieldTensor, grid: Grid, *, iterations: int = 10) -> FieldTensor:
    """Return the first of two displacements after both were moved towards each other's inverse."""
    for _ in range(iterations):
        there, back = (
            there - compose(there, back, grid) / 2,
            back - compose(back, there, grid) / 2,
        )
    return there
