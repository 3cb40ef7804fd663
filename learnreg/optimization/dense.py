"""Dense fields: displacement, stationary velocity, and a displacement updated by composition."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.fields import compose, exponential, jacobian_determinant, logarithm
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.optimization.parametrization import Parametrization
from learnreg.sampling import resize
from learnreg.separable import apply_separable, rows_of, slabs
from learnreg.smoothing import gaussian_smoothing
from learnreg.transforms import Displacement, Transform, Velocity
from learnreg.typing import FieldTensor

FieldKind = Literal["displacement", "velocity"]
LEAST_VOLUME = 0.01  # Jacobian determinants below it count as folds
AROUND = 2  # samples around a fold that are smoothed too
NEAR = 0.5  # largest error of a velocity that is fitted to a start, in control spacings


class DenseParametrization(Parametrization):
    """Displacement or stationary velocity on a control grid, linear between its samples.

    Args:
        grid: Fixed grid of the level.
        start: Transform to start from; ``None`` is the identity.
        kind: ``"velocity"`` for a diffeomorphism, or ``"displacement"``.
        coarsening: Spacing of the control grid, in voxels of the level's fixed grid.
        steps: Number of squarings of a velocity.

    Raises:
        InputError: The kind is unknown, or no velocity is close to ``start``.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> parametrization = DenseParametrization(grid, learnreg.Affine.translation([2.0, 0.0]))
        >>> parametrization.field.shape  # a vector per sample of the control grid
        torch.Size([1, 2, 8, 8])
        >>> parametrization()(torch.zeros(1, 1, 2)).detach()
        tensor([[[2., 0.]]])
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        kind: FieldKind = "velocity",
        coarsening: float = 2.0,
        steps: int = 3,
    ) -> None:
        super().__init__()
        check_kind(kind)
        self.kind, self.coarsening, self.steps = kind, float(coarsening), int(steps)
        self.fixed_grid, self.grid = grid, grid.coarsened(coarsening, smallest=4)
        self.field = nn.Parameter(starting_field(start, self.grid, kind, steps=self.steps))

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Displacement | Velocity:
        return self._transform(self.field)

    def _transform(self, field: Tensor) -> Displacement | Velocity:
        if self.kind == "velocity":
            return Velocity(field, self.grid, self.steps)
        return Displacement(field, self.grid)

    @torch.no_grad()
    def settle(self) -> None:
        """Smooth a velocity where its sampled flow folds.

        The flow of a smooth velocity has no folds, but a flow that is computed on a grid can have a few.
        """
        if self.kind == "velocity":
            self.field.copy_(unfolded(self.field, self.grid, self.fixed_grid, steps=self.steps))

    def refined(self, grid: Grid) -> DenseParametrization:
        now = self._transform(self.field.detach())
        return DenseParametrization(grid, now, kind=self.kind, coarsening=self.coarsening, steps=self.steps)


def unfolded(velocity: FieldTensor, grid: Grid, onto: Grid, *, steps: int, iterations: int = 30) -> FieldTensor:
    """Smooth a velocity where its sampled flow folds, until the flow has no folds.

    A fold is a Jacobian determinant below ``LEAST_VOLUME``.

    Args:
        velocity: ``(B, D, *grid.shape)``, mm per unit time.
        grid: Where ``velocity`` is sampled.
        onto: Grid on which folds are detected, by central differences.
        steps: Number of squarings of the exponential.
        iterations: Maximum number of iterations; each one smooths by a Gaussian with a sigma of one sample.

    Returns:
        ``(B, D, *grid.shape)``, mm per unit time. If it still has folds after the last iteration, a warning says so.
    """
    # `pool` moves the folds to the velocity's coarser grid, `spread` adds their neighbors. Smoothing their indicator
    # avoids an edge in the velocity where the smoothed region ends.
    pool, spread = (F.adaptive_max_pool3d, F.max_pool3d) if grid.ndim == 3 else (F.adaptive_max_pool2d, F.max_pool2d)
    side = float(grid.spacing.min())
    for _ in range(iterations):
        folds = folded(Displacement(exponential(velocity, grid, steps=steps), grid), onto)
        if not bool(folds.any()):
            return velocity
        near = spread(pool(folds.to(velocity.dtype), grid.shape), 2 * AROUND + 1, stride=1, padding=AROUND)
        near = gaussian_smoothing(near, grid, side)
        velocity = velocity + near * (gaussian_smoothing(velocity, grid, side) - velocity)
    remaining = int(folded(Displacement(exponential(velocity, grid, steps=steps), grid), onto).sum())
    if remaining:
        warnings.warn(
            f"The deformation folds at {remaining} samples also after smoothing; use a larger regularization weight.",
            stacklevel=2,
        )
    return velocity


def folded(transform: Displacement, grid: Grid) -> Tensor:
    """Return where the Jacobian determinant of a displacement is below ``LEAST_VOLUME``.

    Works slab by slab along the first axis, so that neither the field nor its Jacobian exists on the whole grid.

    Args:
        transform: Displacement.
        grid: Where the determinant is computed.

    Returns:
        ``(B, 1, *grid.shape)``, boolean.
    """
    found = transform.separable(grid)
    field, matrices = (transform.displacement(grid), None) if found is None else (found.field, found.matrices)
    folds = torch.zeros(len(field), 1, *grid.shape, dtype=torch.bool, device=field.device)
    for rows in slabs(grid.shape, grid.ndim * len(field), field.device):
        seen = slice(max(0, rows.start - 1), min(grid.shape[0], rows.stop + 1))  # neighbors for central differences
        first, reach = rows_of(None if matrices is None else matrices[0], seen)
        rest = [None] * (grid.ndim - 1) if matrices is None else matrices[1:]
        part = apply_separable(field[:, :, reach], [first, *[None] * (grid.ndim - 1)])
        own = grid.rows(seen)
        volume = jacobian_determinant(apply_separable(part, [None, *rest]), own)
        # Not `volume < LEAST_VOLUME`: a determinant that is NaN is a fold as well.
        folds[:, 0, rows] = ~(volume[:, rows.start - seen.start : rows.stop - seen.start] >= LEAST_VOLUME)
    return folds


def check_kind(kind: str) -> None:
    """Raise ``InputError`` unless ``kind`` is ``"displacement"`` or ``"velocity"``."""
    if kind not in ("displacement", "velocity"):
        raise InputError(f"Unknown field {kind!r}; choose displacement or velocity.")


def starting_field(start: Transform | None, grid: Grid, kind: FieldKind, *, steps: int) -> FieldTensor:
    """Sample a transform as a field to start from.

    Args:
        start: Transform; ``None`` is the identity.
        grid: Where the field is sampled.
        kind: ``"displacement"`` or ``"velocity"``.
        steps: Number of squarings of a velocity.

    Returns:
        ``(1, D, *grid.shape)``, mm, detached.

    Raises:
        InputError: No stationary velocity is close to ``start``.
    """
    if start is None:
        return grid.affine.new_zeros(1, grid.ndim, *grid.shape)
    with torch.no_grad():
        if kind == "displacement":
            return start.displacement(grid).clone()
        if isinstance(start, Velocity):
            return Displacement(start.field, start.grid).displacement(grid).clone()
        velocity, residual = logarithm(start.displacement(grid), grid, steps=steps)
    nearest = NEAR * float(grid.spacing.min())
    if bool((residual > nearest).any()):
        raise InputError(
            f"No stationary velocity comes nearer than {float(residual.max()):.3g} mm to the start, a "
            f"{type(start).__name__}; the limit is {nearest:.3g} mm. Give it as `initial`, or use kind='displacement'."
        )
    return velocity


class CompositiveParametrization(Parametrization):
    """Displacement that is updated by composition, as in greedy.

    After each step of the optimizer, the change of the field is smoothed and composed with the previous field, and the
    result is smoothed. Small smooth updates compose to a diffeomorphism. The two smoothings replace a penalty.

    Args:
        grid: Fixed grid of the level.
        start: Transform to start from; ``None`` is the identity.
        fluid: Sigma of the Gaussian that smooths the update, in samples of the field.
        elastic: Sigma of the Gaussian that smooths the field, in samples of the field.
        smoothing: ``(field, grid, image) -> field``, such as :class:`learnreg.smoothing.GraphDiffusion`; smooths the
            field instead of the Gaussian of ``elastic``.
        coarsening: Spacing of the field, in voxels of the level's fixed grid.
        squarings: Number of squarings of the exponential of each update; 0 composes the update itself.

    Source:
        Yushkevich et al., Fast automatic segmentation of hippocampal subfields, 2016 (greedy); Jena et al., FireANTs,
        2024. Differs in: the update is the step of any torch optimizer.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> parametrization = CompositiveParametrization(grid)
        >>> parametrization.field.data[:, 0] += 1.0  # a step of an optimizer: 1 mm along x
        >>> parametrization.after_step(learnreg.Image(torch.rand(1, 1, 16, 16), grid))
        >>> parametrization()(torch.zeros(1, 1, 2)).detach()
        tensor([[[1., 0.]]])
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        fluid: float = 1.5,
        elastic: float = 0.7,
        smoothing: nn.Module | None = None,
        coarsening: float = 1.0,
        squarings: int = 0,
    ) -> None:
        super().__init__()
        self.fluid, self.elastic, self.coarsening = float(fluid), float(elastic), float(coarsening)
        self.squarings = int(squarings)
        self.smoothing = smoothing
        self.grid = grid.coarsened(coarsening, smallest=4)
        field = starting_field(start, self.grid, "displacement", steps=0)
        self.field = nn.Parameter(field)
        self.composed: Tensor
        self.register_buffer("composed", field.clone())

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Displacement:
        return Displacement(self.field, self.grid)

    def refined(self, grid: Grid) -> CompositiveParametrization:
        return CompositiveParametrization(
            grid,
            Displacement(self.field.detach(), self.grid),
            fluid=self.fluid,
            elastic=self.elastic,
            smoothing=self.smoothing,
            coarsening=self.coarsening,
            squarings=self.squarings,
        )

    @torch.no_grad()
    def after_step(self, fixed: Image) -> None:
        side = float(self.grid.spacing.min())
        update = gaussian_smoothing(self.field - self.composed, self.grid, self.fluid * side)
        if self.squarings:
            update = exponential(update, self.grid, steps=self.squarings)
        field = compose(update, self.composed, self.grid)
        if self.smoothing is not None:
            field = self.smoothing(field, self.grid, _image_on(fixed, self.grid))
        else:
            field = gaussian_smoothing(field, self.grid, self.elastic * side)
        self.field.copy_(field)
        self.composed.copy_(field)


def _image_on(image: Image, grid: Grid) -> Tensor:
    return image.data if image.grid.shape == grid.shape else resize(image.data, grid.shape)
