"""Coupled convex discrete search for large displacements."""

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
from learnreg.optimization.stage import Stage, StageResult, check_pair
from learnreg.sampling import resize, sample_image
from learnreg.separable import apply_separable, box_matrix
from learnreg.transforms import Displacement, Transform
from learnreg.typing import FieldTensor, StepCallback

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
        field = self.search(first, second, control)
        if self.consistent:
            field = consistent(field, self.search(second, first, control), control)
        return StageResult(Displacement(field, control))

    def search(self, fixed: Tensor, moving: Tensor, grid: Grid) -> FieldTensor:
        """Search for the displacement with the lowest coupled cost.

        Args:
            fixed: ``(1, C, *grid.shape)`` features.
            moving: ``(1, C, *grid.shape)`` features.
            grid: Grid of the control points.

        Returns:
            ``(1, D, *grid.shape)``, mm.
        """
        steps = list(product(range(-self.reach, self.reach + 1), repeat=grid.ndim))  # array order
        costs = matching_costs(fixed, moving, steps, self.reach)
        costs = costs / costs.mean().clamp(min=1e-12)
        offsets = torch.tensor(steps, dtype=fixed.dtype, device=fixed.device)  # (K, D)
        boxes = [box_matrix(n, 3, fixed) for n in grid.shape]
        flat = costs.flatten(1)  # (K, P)
        neighborhood = apply_separable(offsets[flat.argmin(0)].T.reshape(-1, *grid.shape), boxes)
        for coupling in self.couplings:
            # |u - v|^2 = |u|^2 - 2 u.v + |v|^2: one matrix product in place of a (K, P, D) array of differences
            apart = (offsets.square().sum(1)[:, None] - 2 * offsets @ neighborhood.flatten(1)).add_(
                neighborhood.flatten(1).square().sum(0)
            )
            chosen = offsets[(flat + coupling * apart).argmin(0)]
            neighborhood = apply_separable(chosen.T.reshape(-1, *grid.shape), boxes)
        return linear_map(grid.affine[:1], neighborhood.flip(0).unsqueeze(0))  # components (x, y, z)


def matching_costs(fixed: Tensor, moving: Tensor, steps: list[tuple[int, ...]], reach: int) -> Tensor:
    """Compute the matching cost of each displacement at each control point.

    ``mean_c (fixed(x) - moving(x + step))^2``, averaged over the 3 nearest points per axis. Outside the grid, the
    features have their border values.

    Args:
        fixed: ``(1, C, *grid)`` features.
        moving: ``(1, C, *grid)`` features.
        steps: ``K`` displacements in samples, components in array order.
        reach: Largest displacement along each axis, in samples.

    Returns:
        ``(K, *grid)``, at least 0; lower is a better match.
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
    """Make two displacements inverse-consistent, and return the first.

    Each iteration subtracts half of the displacement of their composition from both. The composition of a displacement
    and its inverse is 0.

    Args:
        there: ``(1, D, *grid.shape)``, mm.
        back: ``(1, D, *grid.shape)``, mm.
        grid: Where both are sampled.
        iterations: Number of iterations.

    Returns:
        ``(1, D, *grid.shape)``, mm.
    """
    for _ in range(iterations):
        there, back = (
            there - compose(there, back, grid) / 2,
            back - compose(back, there, grid) / 2,
        )
    return there
