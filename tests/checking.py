"""The type checker of the tests: with it, every annotation of learnreg is checked at each call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

CONF = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as for mypy
    hint_overrides=FrozenDict({Self: object}),  # unknown to a checker of single methods
)


def checked(function):
    """What jaxtyping calls for the arguments (the result is Any) and again for the result: once each is enough."""
    if function.__annotations__.get("return", Any) is not Any:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    return beartype(function, conf=CONF)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it the annotations are not checked, for tests of the errors that a user gets, who has no checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
