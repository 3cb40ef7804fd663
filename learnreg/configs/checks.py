"""Check a configuration before anything is built from it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from learnreg.errors import InputError


def check_targets(config: Any) -> None:
    """Compare the keys of every ``_target_`` with what it takes.

    Args:
        config: Plain containers, resolved.

    Raises:
        ValueError: A target does not exist, or does not know a key.
    """
    for where, node in _nodes(config, ""):
        target = _locate(str(node["_target_"]), where)
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):
            continue
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            continue
        for key in node:
            if not str(key).startswith("_") and key not in parameters:
                raise InputError(unknown_key(f"{where}.{key}" if where else str(key), str(key), list(parameters)))


def unknown_key(where: str, key: str, known: list[str]) -> str:
    """One line that names the likely key."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(known))}."
    return f"Unknown config key {where!r}; {hint}"


def _nodes(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _nodes(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{where}[{index}]")


def _locate(target: str, where: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{where}._target_ is {target!r}, which cannot be imported: {error}.") from error
