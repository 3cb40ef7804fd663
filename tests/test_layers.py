"""Imports go from top to bottom of the table in docs/architecture.md only."""

import ast
import graphlib
import importlib
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[1] / "learnreg"
LAYERS = [
    ["typing", "errors", "caching", "configs", "memory", "randomness", "kernels"],
    ["grid", "orientation", "separable", "numerics", "interpolation"],
    ["image", "headers", "writing", "io", "landmarks"],
    ["sampling"],
    ["fields", "smoothing", "search"],
    ["transforms"],
    ["warping"],
    ["terms"],
    ["similarity", "regularization"],
    ["supervision"],
    ["consistency"],
    ["objective"],
    ["metrics"],
    ["optimization", "networks"],
    ["data"],
    ["reporting"],
    ["training"],
    ["methods"],
    ["integrations"],
    ["apps"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Parts of the package that a file imports; what only a type checker sees does not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "learnreg":
            names |= {node.module} if node.module != "learnreg" else {f"learnreg.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "learnreg"}
    return {name.split(".")[1] for name in names if "." in name and not name.split(".")[1].startswith("__")}


def test_every_part_has_a_layer():
    assert {part_of(file) for file in FILES} == set(RANK)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_upward(file):
    own = part_of(file)
    for other in imported(file) - {own}:
        assert RANK[other] <= RANK[own], f"{own} imports {other}, which is further down"
    assert not ({own} & {"optimization"} and "networks" in imported(file))
    assert not ({own} & {"networks"} and "optimization" in imported(file))


def modules_imported(file: Path) -> set[str]:
    """Modules of the package that importing ``file`` imports at once, in functions or for a type checker not."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("learnreg"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_circle():
    """Each module can be read after those that it imports."""
    names = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}
    exported = {}  # a lazy package imports a name's module when the name is used
    for stub in PACKAGE.rglob("__init__.pyi"):
        package = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                exported |= {f"{package}.{alias.name}": f"{package}.{node.module}" for alias in node.names}
    graph = {
        name: {exported.get(other, other) for other in modules_imported(file)} & names.keys() - {name}
        for name, file in names.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError for a circle
    met = [
        order.index(f"learnreg.{name}")
        for name in ("grid", "image", "sampling", "fields", "transforms.base", "warping")
    ]
    assert met == sorted(met)


def test_no_module_holds_a_tensor():
    """A module can be imported while a device is set, as when a model is outlined without memory; so would its tensor."""
    held = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # an optional package is missing
            continue
        held |= {f"{name}.{key}": value for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
    assert not held
