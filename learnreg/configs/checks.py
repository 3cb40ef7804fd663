"""Check a configuration before anything is built from it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from learnreg.errors import InputError

LARGEST_FILE = 1_000_000  # bytes of a YAML file
MOST_VALUES = 100_000  # of a YAML file, once each alias is replaced by what it stands for


def check_yaml(text: str) -> None:
    """Check that a YAML file of someone else stays small when it is read: a few nested aliases can fill any memory.

    Raises:
        InputError: It would hold too many values.
        yaml.YAMLError: It is not YAML.

    Example:
        >>> check_yaml("{a: &x [1, 2], b: [*x, *x]}")
        >>> lines = [f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 9)]
        >>> check_yaml("{l0: &l0 [1], " + ", ".join(lines) + "}")
        Traceback (most recent call last):
        learnreg.errors.InputError: It would hold more than 100000 values; write them out without nested aliases.
    """
    try:
        size = _expanded(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except RecursionError:
        raise InputError("It is nested too deeply; write it with fewer levels.") from None
    if size > MOST_VALUES or len(text) > LARGEST_FILE:
        raise InputError(f"It would hold more than {MOST_VALUES} values; write them out without nested aliases.")


def _expanded(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the number of values below a node; one that contains itself has infinitely many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def check_targets(config: Any) -> None:
    """Check the keys of every ``_target_``, and for our own classes the types of their values.

    The signature of a class is its schema: a key must name an argument, and a plain value must fit its annotation.

    Args:
        config: Plain containers, resolved.

    Raises:
        InputError: A target does not exist, does not know a key or lacks one, or a value has the wrong type.

    Example:
        >>> check_targets({"_target_": "learnreg.similarity.LNCC", "window": 5})
        >>> check_targets({"_target_": "learnreg.similarity.LNCC", "windw": 5})
        Traceback (most recent call last):
        learnreg.errors.InputError: Unknown config key 'windw'; did you mean 'window'?
    """
    for where, node in _nodes(config, ""):
        target = _locate(str(node["_target_"]), where)
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):  # some built-ins have no signature
            continue
        given = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            for key in given:
                if key not in parameters:
                    raise InputError(unknown_key(join(where, key), key, list(parameters)))
        _check_complete(where, node, parameters)
        if str(node["_target_"]).startswith("learnreg."):
            _check_types(where, target, given)


def targets(config: Any) -> list[str]:
    """Return every ``_target_`` of a nested configuration."""
    return [str(node["_target_"]) for _, node in _nodes(config, "")]


def places(node: Any, where: str = "") -> list[str]:
    """Return every key of nested mappings with its parents, such as ``network.channels``."""
    if not isinstance(node, dict):
        return []
    own = [(join(where, str(key)), value) for key, value in node.items()]
    return [place for key, value in own for place in (key, *places(value, key))]


def unknown_key(where: str, key: str, known: list[str]) -> str:
    """Return an error message that names the likely key."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(known))}."
    return f"Unknown config key {where!r}; {hint}"


def _check_complete(where: str, node: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    if node.get("_partial_") or "_args_" in node:  # the rest is given where it is called
        return
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in variadic and key not in node:
            raise InputError(f"{join(where, key)} is missing: {node['_target_']} needs it.")


def check_built(where: str, target: Any, values: Mapping[str, Any]) -> None:
    """Check that the arguments of a class fit its annotations, after the modules among them are built.

    Args:
        where: Place of the class in the configuration, for error messages.
        target: The class.
        values: Its arguments.

    Raises:
        InputError: A value has the wrong type.
    """
    hints = _hints(target)
    for key, value in values.items():
        if key in hints and not _fits(_as_tuples(value), hints[key]):
            raise InputError(f"{join(where, key)} must be {_described(hints[key])}, got {_short(value)}.")


def _check_types(where: str, target: Any, given: dict[str, Any]) -> None:
    check_built(where, target, {key: value for key, value in given.items() if not _is_nested(value)})


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # an annotation that only a type checker can resolve
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits an annotation; beartype, which takes long to import, decides what is not plain."""
    if _surely_fits(value, hint):
        return True
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    return is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def _surely_fits(value: Any, hint: Any) -> bool:
    """Return ``True`` if a value fits an annotation of a few common kinds; ``False`` decides nothing."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return hint.__bound__ is not None and _surely_fits(value, hint.__bound__)
    if kind is None:
        if hint is None or hint is Any:
            return hint is Any or value is None
        plain = inspect.isclass(hint) and not getattr(hint, "_is_protocol", False)
        return plain and isinstance(value, (float, int) if hint is float else hint)
    if kind in (types.UnionType, typing.Union):
        return any(_surely_fits(value, one) for one in inner)
    if kind is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    return _surely_contains(value, kind, inner)


def _surely_contains(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    """Return ``True`` if a value is such a container with such values, or such a function."""
    if kind is tuple and inner[-1:] != (...,):
        same = isinstance(value, tuple) and len(value) == len(inner)
        return same and all(map(_surely_fits, value, inner))
    if kind in (tuple, Sequence):
        return isinstance(value, tuple) and all(_surely_fits(one, inner[0]) for one in value)
    if kind in (dict, Mapping):
        key, held = inner
        return isinstance(value, dict) and all(_surely_fits(k, key) and _surely_fits(v, held) for k, v in value.items())
    if kind is Callable:
        return callable(value)
    return inspect.isclass(kind) and issubclass(kind, typing.Generic) and isinstance(value, kind)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_nested(value: Any) -> bool:
    """Return whether a value contains another target, which is checked separately, or an object."""
    if isinstance(value, dict):
        return "_target_" in value or any(_is_nested(v) for v in value.values())
    if isinstance(value, list):
        return any(_is_nested(v) for v in value)
    return not isinstance(value, str | int | float | bool | None)


def _as_tuples(value: Any) -> Any:
    """Convert lists to tuples: YAML has no tuples, and a tuple fits the annotations of both."""
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


def _described(hint: Any) -> str:
    if inspect.isclass(hint) and not typing.get_args(hint):
        return str(hint.__name__)
    return str(hint).replace("collections.abc.", "").replace("typing.", "").replace("NoneType", "None")


def join(where: str, key: str) -> str:
    """Return the place of a key in a configuration."""
    return f"{where}.{key}" if where else key


def _nodes(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _nodes(value, join(where, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{where}[{index}]")


def _locate(target: str, where: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{join(where, '_target_')} is {target!r}, which cannot be imported: {error}.") from error
