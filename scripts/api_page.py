"""Write ``docs/api.md``, the page of public names, from the stubs of the package: ``python scripts/api_page.py``."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "learnreg"
INTRODUCTION = """# Public interface

The names on this page are public: they change only with a note in the release, and the old name warns first.
Everything else may change at any time. The stubs `learnreg/**/__init__.pyi` list the public names;
`python scripts/api_page.py` writes this page from them.

Every name can be reached from one import, `import learnreg`, and is loaded when it is first used.
"""


def public(stub: Path) -> list[str]:
    """Names that a stub exports, modules left out, in the order of the stub."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return [a.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for a in node.names]


def summary(value: Any) -> str:
    """First line of a docstring; for an alias, what it stands for."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return "Type alias."


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    for stub in sorted(PACKAGE.rglob("__init__.pyi"), key=lambda file: (len(file.parts), file)):
        name = ".".join(stub.parent.relative_to(ROOT).parts)
        module = importlib.import_module(name)
        rows = [f"| `{entry}` | {summary(getattr(module, entry))} |" for entry in public(stub)]
        parts.append("\n".join([f"## `{name}`\n", "| name | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
