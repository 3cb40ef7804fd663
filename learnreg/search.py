"""Coupled convex discrete search: the smooth displacement whose features match best."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.fields import compose
from learnreg.grid import Grid, linear_map
from learnreg.kernels.compiled import fused_without_gradient, run
from learnreg.kernels.matching import soft_choices, squared_differences
from learnreg.separable import apply_separable, box_matrix
from learnreg.typing import FieldTensor


def coupled_search(
    fixed: Tensor,
    moving: Tensor,
    grid: Grid,
    *,
    reach: int,
    couplings: Sequence[float],
    softness: float = 0.0,
) -> FieldTensor:
    """Search for the displacement with the lowest coupled cost, see :class:`learnreg.optimization.ConvexStage`.

    Args:
        fixed: ``(1, C, *grid.shape)`` features.
        moving: ``(1, C, *grid.shape)`` features.
        grid: Grid of the control points.
        reach: Largest displacement along each axis, in control points.
        couplings: In rising order, in units of the mean cost per squared control spacing.
        softness: In units of the mean cost. A control point takes the mean of all displacements, weighted by
            ``exp(-cost / softness)``, which is differentiable and lies between the samples; 0 takes the best one.

    Returns:
        ``(1, D, *grid.shape)``, mm.

    Source:
        Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014; with ``softness``,
        Heinrich, Closing the gap between deep and conventional image registration using probabilistic dense
        displacement networks, MICCAI 2019.
    """
    steps = list(product(range(-reach, reach + 1), repeat=grid.ndim))  # array order
    costs = matching_costs(fixed, moving, reach)
    flat = (costs / costs.mean().clamp(min=1e-12)).flatten(1)  # (K, P)
    offsets = torch.tensor(steps, dtype=fixed.dtype, device=fixed.device)  # (K, D)
    boxes = [box_matrix(n, 3, fixed) for n in grid.shape]

    def smooth(coupling: float, near: Tensor) -> Tensor:
        """Choose a displacement at each control point, and return the local mean."""
        if softness and fused_without_gradient(flat):
            chosen = run(partial(soft_choices, coupling=coupling, softness=softness), flat, offsets, near.flatten(1))
        else:
            scores = flat
            if coupling:
                # |u - v|^2 = |u|^2 - 2 u.v + |v|^2: one matrix product in place of a (K, P, D) array of differences
                apart = offsets.square().sum(1)[:, None] - 2 * offsets @ near.flatten(1)
                scores = flat + coupling * (apart + near.flatten(1).square().sum(0))
            chosen = ((-scores / softness).softmax(0).T @ offsets if softness else offsets[scores.argmin(0)]).T
        return apply_separable(chosen.reshape(-1, *grid.shape), boxes)

    neighborhood = offsets.new_zeros(grid.ndim, *grid.shape)
    for coupling in (0.0, *couplings):
        neighborhood = smooth(coupling, neighborhood)
    return linear_map(grid.affine[:1], neighborhood.flip(0).unsqueeze(0))  # components (x, y, z)


def matching_costs(fixed: Tensor, moving: Tensor, reach: int) -> Tensor:
    """Compute the matching cost of each displacement at each control point.

    ``mean_c (fixed(x) - moving(x + step))^2``, averaged over the 3 nearest points per axis. Outside the grid, the
    features have their border values.

    Args:
        fixed: ``(1, C, *grid)`` features.
        moving: ``(1, C, *grid)`` features.
        reach: Largest displacement along each axis, in samples.

    Returns:
        ``(K, *grid)``, the displacements in array order; at least 0, lower is a better match.
    """
    boxes = [box_matrix(n, 3, fixed) for n in fixed.shape[2:]]
    if fused_without_gradient(fixed, moving):
        return apply_separable(run(partial(squared_differences, reach=reach), fixed, moving), boxes)
    padded = F.pad(moving, [reach] * (2 * len(boxes)), mode="replicate")
    costs = []
    for step in product(range(-reach, reach + 1), repeat=len(boxes)):
        shifted = padded
        for axis, (s, n) in enumerate(zip(step, fixed.shape[2:], strict=True)):
            shifted = shifted.narrow(axis + 2, reach + s, n)
        costs.append((fixed - shifted).square().mean(1))
    return apply_separable(torch.cat(costs), boxes)


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
