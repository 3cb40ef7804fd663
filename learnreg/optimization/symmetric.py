"""Symmetric parametrization: a transform from a middle space to each image, as in SyN."""

from __future__ import annotations

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.optimization.dense import DenseParametrization
from learnreg.optimization.parametrization import Parametrization, ParametrizationFactory
from learnreg.transforms import Symmetric, Transform, Velocity


class SymmetricParametrization(Parametrization):
    """Two parametrizations, from a middle space to the fixed and to the moving space.

    See :class:`learnreg.transforms.Symmetric`.

    Args:
        grid: Fixed grid of the level; the middle space is sampled on it.
        start: Symmetric transform or velocity to start from; ``None`` is the identity. Each side gets half of a
            velocity.
        side: ``(grid, start) -> Parametrization`` of one side; ``None`` is :class:`DenseParametrization`, a dense
            velocity.

    Raises:
        InputError: ``start`` is neither a symmetric transform nor a velocity.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation, Med. Image Anal. 2008.

    Example:
        >>> parametrization = SymmetricParametrization(learnreg.Grid.regular((16, 16)))
        >>> transform = parametrization()
        >>> type(transform.fixed_side).__name__, type(transform.moving_side).__name__
        ('Velocity', 'Velocity')
    """

    def __init__(
        self, grid: Grid, start: Transform | None = None, *, side: ParametrizationFactory | None = None
    ) -> None:
        super().__init__()
        make = side or DenseParametrization
        first, second = _shared_out(start)
        self.fixed_side, self.moving_side = make(grid, first), make(grid, second)

    def forward(self, fixed: Image | None = None, moving: Image | None = None) -> Symmetric:
        return Symmetric(self.fixed_side(fixed, moving), self.moving_side(fixed, moving))

    def refined(self, grid: Grid) -> SymmetricParametrization:
        self.fixed_side, self.moving_side = self.fixed_side.refined(grid), self.moving_side.refined(grid)
        return self

    def settle(self) -> None:
        """Settle both sides."""
        self.fixed_side.settle()
        self.moving_side.settle()

    def after_step(self, fixed: Image) -> None:
        self.fixed_side.after_step(fixed)
        self.moving_side.after_step(fixed)


def _shared_out(start: Transform | None) -> tuple[Transform | None, Transform | None]:
    """Return where the fixed and the moving side start."""
    if start is None:
        return None, None
    if isinstance(start, Symmetric):
        return start.fixed_side, start.moving_side
    if isinstance(start, Velocity):
        return Velocity(-start.field / 2, start.grid, start.steps), Velocity(start.field / 2, start.grid, start.steps)
    raise InputError(
        f"A symmetric search cannot start from a {type(start).__name__}, only from a Symmetric or a Velocity; "
        "give it as `initial`."
    )
