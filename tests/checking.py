"""How the annotations of learnreg are checked while tests run."""

from collections.abc import Callable
from functools import wraps
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float
with_shapes = jaxtyping.jaxtyped


def install() -> None:
    """Check everything of learnreg that is imported from here on."""
    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook("learnreg", f"{__name__}.once")


def once(function: Callable) -> Callable:
    """What jaxtyping calls for the arguments, with a result of Any, and then for arguments and result."""
    if function.__annotations__.get("return", Any) is not Any:
        function.__annotations__ = {"return": function.__annotations__["return"]}
    return beartype(function, conf=CONF)


def checked(function=None, *, typechecker):
    """``jaxtyping.jaxtyped`` where an annotation has a shape, else beartype, which takes a tenth of the time."""
    if function is None:
        return lambda function: checked(function, typechecker=typechecker)
    if isinstance(function, type) or not callable(function):  # a dataclass; a property, class or static method
        return with_shapes(function, typechecker=typechecker)
    try:
        hints = get_type_hints(function, include_extras=True)  # the command line reads what is Annotated
    except NameError:  # of a class that is defined further down, or for mypy alone
        return with_shapes(function, typechecker=typechecker)
    if any(map(has_shape, hints.values())):
        return with_shapes(function, typechecker=typechecker)
    if all(hint is Any for hint in hints.values()):
        return function
    function.__annotations__ = hints
    strict = beartype(function, conf=CONF)

    @wraps(function)
    def call(*args, **kwargs):
        return (function if jaxtyping.config.jaxtyping_disable else strict)(*args, **kwargs)

    return call


def has_shape(hint: Any) -> bool:
    """Whether the hint is, or contains, one of the aliases of learnreg.typing."""
    shaped = isinstance(hint, type) and (issubclass(hint, jaxtyping.AbstractArray) or hasattr(hint, "square"))
    return shaped or any(map(has_shape, get_args(hint)))
