"""The type checker of the tests: with it, every annotation of learnreg is checked at each call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Self, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

CONF = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as for mypy
    hint_overrides=FrozenDict({Self: object}),  # unknown to a checker of single methods
)
with_shapes = jaxtyping.jaxtyped


def install() -> None:
    """Check all of learnreg that is imported from here on."""
    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook("learnreg", f"{__name__}.types_only")


def types_only(function):
    """What jaxtyping calls for the arguments (the result is Any) and again for the result: once each is enough."""
    if function.__annotations__.get("return", Any) is not Any:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    return beartype(function, conf=CONF)


def checked(function=None, *, typechecker):
    """``jaxtyped``, which takes ten times as long as beartype, where an annotation has a shape."""
    if function is None:
        return lambda function: checked(function, typechecker=typechecker)
    if not isinstance(function, Callable) or isinstance(function, type):
        return with_shapes(function, typechecker=typechecker)
    try:
        hints = get_type_hints(function)
    except NameError:  # a class that is not there yet, or only for mypy
        return with_shapes(function, typechecker=typechecker)
    if any(map(_has_shape, hints.values())):
        return with_shapes(function, typechecker=typechecker)
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    function_checked = beartype(function, conf=CONF)

    @wraps(function)
    def call(*args, **kwargs):
        return (function if jaxtyping.config.jaxtyping_disable else function_checked)(*args, **kwargs)

    return call


def _has_shape(hint) -> bool:
    return hasattr(type(hint), "__instancecheck__") and type(hint).__module__.split(".")[0] in ("jaxtyping", "learnreg") or any(
        map(_has_shape, get_args(hint))
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it the annotations are not checked, for tests of the errors that a user gets, who has no checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
