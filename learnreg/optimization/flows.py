"""Flows of time-varying velocities: free at each time, or determined by an initial momentum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.fields import jacobian_matrix
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.numerics import full_precision
from learnreg.optimization.dense import starting_field
from learnreg.optimization.parametrization import Parametrization
from learnreg.sampling import resize
from learnreg.smoothing import gaussian_smoothing
from learnreg.transforms import Composite, Transform, Velocity
from learnreg.typing import FieldTensor


class TimeVaryingParametrization(Parametrization):
    """Flow of a velocity that is constant within each of several intervals of time.

    The transform is the composition of the exponentials of the intervals. Its inverse composes their inverses in
    reverse order, without resampling. Penalties act on the velocity of each interval times the length of the interval.

    Args:
        grid: Fixed grid of the level.
        start: Transform to start from, as a constant velocity; ``None`` is the identity.
        intervals: Number of intervals.
        coarsening: Spacing of the control grid, in voxels of the level's fixed grid.
        steps: Number of squarings per interval.

    Raises:
        InputError: There is no interval, or no velocity is close to ``start``.

    Source:
        Beg et al., Computing large deformation metric mappings via geodesic flows of diffeomorphisms, IJCV 2005.
        Differs in: constant in time within an interval.

    Example:
        >>> parametrization = TimeVaryingParametrization(learnreg.Grid.regular((16, 16)), intervals=3)
        >>> [type(part).__name__ for part in parametrization().transforms]
        ['Velocity', 'Velocity', 'Velocity']
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        intervals: int = 4,
        coarsening: float = 2.0,
        steps: int = 2,
    ) -> None:
        super().__init__()
        if intervals < 1:
            raise InputError(f"A flow needs at least one interval, got {intervals}.")
        self.intervals, self.coarsening, self.steps = int(intervals), float(coarsening), int(steps)
        self.grid = grid.coarsened(coarsening, smallest=4)
        # One exponential of the whole time needs more squarings than one interval, hence two more to fit the start.
        constant = starting_field(start, self.grid, "velocity", steps=steps + 2) / intervals
        self.velocities = nn.Parameter(constant.repeat(intervals, *[1] * (constant.ndim - 1)))

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Composite:
        return Composite(tuple(Velocity(v.unsqueeze(0), self.grid, self.steps) for v in self.velocities))

    def refined(self, grid: Grid) -> TimeVaryingParametrization:
        finer = TimeVaryingParametrization(grid, intervals=self.intervals, coarsening=self.coarsening, steps=self.steps)
        finer.velocities.data = resize(self.velocities.detach(), finer.grid.shape)
        return finer


class ShootingParametrization(Parametrization):
    """Geodesic flow that is determined by its initial momentum (geodesic shooting).

    The velocity is ``v = K m`` with the momentum ``m`` and a Gaussian ``K``, see :func:`shoot`.

    Args:
        grid: Fixed grid of the level.
        start: Must be ``None``; the momentum of a given transform is not known in closed form.
        sigma: Sigma of the Gaussian ``K``, mm; all levels have the same metric.
        intervals: Number of intervals of time.
        coarsening: Spacing of the momentum, in voxels of the level's fixed grid.
        steps: Number of squarings per interval.

    Raises:
        InputError: ``start`` is given, or ``sigma`` is not positive.

    Source:
        Miller, Trouve and Younes, Geodesic shooting for computational anatomy, J. Math. Imaging Vis. 2006; Vialard et
        al., Diffeomorphic 3D image registration via geodesic shooting, IJCV 2012.

    Example:
        >>> parametrization = ShootingParametrization(learnreg.Grid.regular((16, 16)), intervals=3)
        >>> parametrization.momentum.shape  # the only parameter, whatever the number of intervals
        torch.Size([1, 2, 8, 8])
        >>> len(parametrization().transforms)
        3
    """

    def __init__(
        self,
        grid: Grid,
        start: Transform | None = None,
        *,
        sigma: float = 5.0,
        intervals: int = 5,
        coarsening: float = 2.0,
        steps: int = 2,
    ) -> None:
        super().__init__()
        if start is not None:
            raise InputError(
                f"A shooting cannot start from a transform, got a {type(start).__name__}; use start=None, and give the "
                "transform as `initial`."
            )
        if sigma <= 0:
            raise InputError(f"A shooting needs a positive sigma in mm, got {sigma}.")
        self.sigma, self.intervals = float(sigma), int(intervals)
        self.coarsening, self.steps = float(coarsening), int(steps)
        self.grid = grid.coarsened(coarsening, smallest=4)
        self.momentum = nn.Parameter(grid.affine.new_zeros(1, grid.ndim, *self.grid.shape))

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Composite:
        velocities, _ = shoot(self.momentum, self.grid, self.sigma, intervals=self.intervals)
        return Composite(tuple(Velocity(v / self.intervals, self.grid, self.steps) for v in velocities))

    def refined(self, grid: Grid) -> ShootingParametrization:
        finer = ShootingParametrization(
            grid, sigma=self.sigma, intervals=self.intervals, coarsening=self.coarsening, steps=self.steps
        )
        finer.momentum.data = resize(self.momentum.detach(), finer.grid.shape)
        return finer


@full_precision
def shoot(momentum: FieldTensor, grid: Grid, sigma: float, *, intervals: int) -> tuple[list[FieldTensor], FieldTensor]:
    """Integrate the geodesic of an initial momentum from time 0 to 1.

    Solves the Euler-Poincare equation ``dm/dt = -(Dm v + Dv^T m + m div v)`` with ``v = K m`` by the midpoint rule. The
    energy ``<m, v>`` is constant along the exact geodesic.

    Args:
        momentum: Initial momentum ``(B, D, *grid.shape)``, mm.
        grid: Where ``momentum`` is sampled.
        sigma: Sigma of the Gaussian ``K``, mm.
        intervals: Number of intervals of time.

    Returns:
        The velocity in the middle of each interval, ``(B, D, *grid.shape)``, mm per unit time, and the momentum at
        time 1.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> momentum = torch.exp(-grid.points.square() / 20).movedim(-1, 1) / 4
        >>> velocities, final = shoot(momentum, grid, 3.0, intervals=5)
        >>> len(velocities)
        5
        >>> def energy(m):
        ...     return float((m * learnreg.smoothing.gaussian_smoothing(m, grid, 3.0)).sum())
        >>> round(energy(final) / energy(momentum), 2)
        1.0
    """
    velocities = []
    step = 1 / intervals
    for _ in range(intervals):
        middle = momentum + step / 2 * _momentum_change(momentum, grid, sigma)
        velocities.append(gaussian_smoothing(middle, grid, sigma))
        momentum = momentum + step * _momentum_change(middle, grid, sigma)
    return velocities, momentum


def _momentum_change(momentum: Tensor, grid: Grid, sigma: float) -> Tensor:
    """Return ``dm/dt``, see :func:`shoot`."""
    velocity = gaussian_smoothing(momentum, grid, sigma)
    eye = torch.eye(grid.ndim, dtype=momentum.dtype, device=momentum.device)
    dm = jacobian_matrix(momentum, grid) - eye  # (B, *grid, component, direction)
    dv = jacobian_matrix(velocity, grid) - eye
    m, v = momentum.movedim(1, -1).unsqueeze(-1), velocity.movedim(1, -1).unsqueeze(-1)
    divergence = dv.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return -(dm @ v + dv.mT @ m + m * divergence).squeeze(-1).movedim(-1, 1)
