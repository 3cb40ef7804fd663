"""The public interface: one list, lazy, complete and documented."""

import ast
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import learnreg

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "learnreg"
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))


def public(stub):
    """Names that a stub exports, modules left out, in the order of the stub."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return [a.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for a in node.names]


def python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_one_import_reaches_everything_and_loads_nothing():
    done = python(
        "import sys, learnreg; assert 'torch' not in sys.modules; print(learnreg.similarity.LNCC(5).settings)"
    )
    assert done.returncode == 0, done.stderr
    assert "'window': 5" in done.stdout
    assert {"similarity", "register", "Objective"} <= set(dir(learnreg))
    with pytest.raises(AttributeError, match="nothing"):
        learnreg.nothing  # noqa: B018


def test_the_library_leaves_the_process_alone_and_the_commands_do_not():
    code = "import os, learnreg; learnreg.Grid; print('OMP_WAIT_POLICY' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    run = partial(subprocess.run, env=environment, capture_output=True, text=True, check=True)
    assert run([sys.executable, "-c", code]).stdout.strip() == "False"
    code = "import os; from learnreg.apps.main import main; main(['methods']); print(os.environ['OMP_WAIT_POLICY'])"
    assert run([sys.executable, "-c", code]).stdout.splitlines()[-1] == "PASSIVE"


def test_every_public_name_exists():
    done = python("import learnreg", EAGER_IMPORT="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_every_public_name_is_documented(stub):
    module = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    for name in public(stub):
        value = getattr(module, name)
        if callable(value) and hasattr(value, "__module__") and value.__module__.startswith("learnreg"):
            assert value.__doc__, name


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_every_package_has_a_page(stub):
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    page = (ROOT / "docs" / "api" / f"{package.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    assert f".. automodule:: {package}\n" in page


def test_types_are_shipped():
    assert (Path(learnreg.__file__).parent / "py.typed").exists()
