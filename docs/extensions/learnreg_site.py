"""Sphinx directives of the site: the help of every command, and one page per package of public names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^[│ ]{1,4}([a-z][a-z-]*)  +\S", re.M)


def help_of(*command: str) -> str:
    """Text of ``learnreg COMMAND --help``."""
    plain = {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    code = "import sys; from learnreg.apps.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT,
        env=os.environ | plain,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.strip("\n")


def commands() -> list[str]:
    """Names of the commands, as ``learnreg --help`` lists them."""
    return COMMAND.findall(help_of())


class CommandHelp(SphinxDirective):
    """Show ``learnreg --help``, then a section per command with its help."""

    def run(self) -> list[nodes.Node]:
        shown: list[nodes.Node] = [self.literal(help_of())]
        for name in commands():
            if name == "train":  # Hydra's help is that of a configuration
                continue
            section = nodes.section(ids=[f"learnreg-{name}"], names=[f"learnreg {name}"])
            section += nodes.title(text=f"learnreg {name}")
            section += self.literal(help_of(name))
            shown.append(section)
        return shown

    @staticmethod
    def literal(text: str) -> nodes.literal_block:
        return nodes.literal_block(text, text, language="text")


@cache
def exported(package: str) -> tuple[str, ...]:
    """Names that the stub of a package exports, modules left out."""
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return tuple(a.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for a in node.names)


@cache
def packages() -> tuple[str, ...]:
    """Packages with public names."""
    stubs = (ROOT / "learnreg").rglob("__init__.pyi")
    return tuple(sorted(".".join(stub.parent.relative_to(ROOT).parts) for stub in stubs))


def where_documented(name: str) -> str:
    """Package whose page documents a name that `learnreg` exports."""
    return next((package for package in packages() if package != "learnreg" and name in exported(package)), "learnreg")


def skip(app: Any, _what: str, name: str, _value: Any, _skipped: bool, _options: Any) -> bool | None:
    """On the page of `learnreg`, leave out modules and what the page of a package documents."""
    page = app.env.temp_data.get("autodoc:module")
    if page == "learnreg" and name in dir(__import__("learnreg")):
        return where_documented(name) != "learnreg" or name not in exported("learnreg")
    return None


def setup(app: Any) -> dict[str, bool]:
    """Connect directives and hooks."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
