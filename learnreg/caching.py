"""``UncachedState``: what is computed from a value once is not part of its state."""

from __future__ import annotations

from functools import cached_property
from typing import Any


class UncachedState:
    """Base of immutable classes with ``cached_property``: copies and pickles leave out what was cached.

    Example:
        >>> grid = learnreg.Grid.regular((64, 64, 64))
        >>> import pickle
        >>> before = len(pickle.dumps(grid))
        >>> points = grid.points
        >>> len(pickle.dumps(grid)) == before
        True
    """

    def __getstate__(self) -> dict[str, Any]:
        kinds = [vars(kind) for kind in type(self).__mro__]
        cached = {name for kind in kinds for name, value in kind.items() if isinstance(value, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in cached}
