"""A file describes modules; it runs nothing, and what it describes is checked before it is built."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pytest
from beartype import BeartypeConf
from beartype.door import is_bearable
from torch import nn

from learnreg.configs.build import LARGEST, build
from learnreg.configs.checks import _surely_fits
from learnreg.configs.files import config_dir, method_names
from learnreg.errors import InputError, UntrustedClassError
from learnreg.methods import load_method
from learnreg.similarity import MSE
from learnreg.similarity.base import Similarity
from learnreg.terms import TermT, Weighted

OPENED = "${oc.create:{_target_: io.open, file: opened.txt, mode: w}}"
SYSTEM = {"_target_": "os.system", "command": "touch opened.txt"}
LNCC = {"_target_": "learnreg.similarity.LNCC", "window": 5}


def objective(**changes):
    return {"_target_": "learnreg.objective.Objective", "similarity": LNCC, **changes}


@pytest.fixture
def nothing_is_written(tmp_path, monkeypatch):
    """The files that an attack would write are missing after the test."""
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    yield
    assert {file.name for file in set(tmp_path.iterdir()) - before} <= {"method.yaml"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LNCC, "window": OPENED}, "window has an interpolation"),
        ({**LNCC, "window": [5, [OPENED]]}, r"window\[1\]\[0\] has an interpolation"),
        ({**LNCC, OPENED: 5}, "has an interpolation"),
        (objective(similarity={**LNCC, "window": OPENED}), "similarity.window has an interpolation"),
        ({"_target_": OPENED}, "has an interpolation"),
        (SYSTEM, "needs os.system, which is not part of learnreg"),
        ({"_target_": "io.open", "file": "opened.txt", "mode": "w"}, "needs io.open"),
        ({"_target_": "torch.load", "f": "opened.txt"}, "needs torch.load"),
        ({"_target_": "torch.nn.Sequential", "_args_": [SYSTEM]}, "_args_ is not allowed"),
        ({"_target_": "hydra.utils.instantiate", "config": SYSTEM}, "needs hydra.utils.instantiate"),
        (objective(similarity=SYSTEM), "needs os.system"),
        (objective(penalties={"a": [SYSTEM]}), "needs os.system"),
        ({"_target_": "learnreg.io.write_image"}, "not a public class that can be built"),
        ({"_target_": "learnreg.networks.base.torch.load"}, "not a public class that can be built"),
        ({"_target_": "learnreg.networks.checkpoint.build"}, "not a public class that can be built"),
        ({"_target_": "learnreg.networks.load_checkpoint", "path": "x"}, "not a public class that can be built"),
        ({"_target_": "learnreg.training.distillation.Distillation", "folder": "x"}, "not a public class"),
        ({"_target_": ["os.system"]}, "must be the name of a class"),
        ({**LNCC, "_convert_": "all"}, "_convert_ is not allowed"),
        ({**LNCC, "_recursive_": False}, "_recursive_ is not allowed"),
        (objective(similarity={**LNCC, "_partial_": True}), "similarity must be Similarity, got functools.partial"),
        ({**LNCC, "_partial_": "yes"}, "_partial_ must be true or false"),
        ({**LNCC, "windw": 5}, "did you mean 'window'"),
        ({**LNCC, "window": "five"}, "window must be int, got 'five'"),
        ({**LNCC, "window": 10**9}, f"window must be at most {LARGEST}"),
        ({**LNCC, "window": float("nan")}, "window must be a finite number"),
        ({**LNCC, "window": b"5"}, "got a bytes"),
        ({**LNCC, 5: 5}, "has the key 5"),
        (objective(similarity=[LNCC]), "similarity must be Similarity"),
        (objective(similarity={"_target_": "learnreg.networks.UNet"}), "similarity must be Similarity, got UNet"),
        (objective(penalties=[LNCC]), "penalties must be"),
        ({"_target_": "learnreg.objective.Objective"}, "similarity is missing"),
        ({"similarity": LNCC}, "describes no module"),
    ],
)
def test_what_a_file_must_not_say(config, message, nothing_is_written):
    with pytest.raises(InputError, match=message) as caught:
        build(config, source="model.safetensors")
    assert str(caught.value).startswith("model.safetensors")
    assert "\n" not in str(caught.value)


def test_deep_nesting_ends():
    config: dict = {}
    for _ in range(1000):
        config = {"similarity": config}
    with pytest.raises(InputError, match="nested more than"):
        build(config, source="model.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: torch.load\nf: opened.txt\n", "needs torch.load"),
        (f"_target_: learnreg.methods.IterativeMethod\nstages: '{OPENED}'\n", "stages has an interpolation"),
        (f"defaults:\n  - /method/brain@_here_\n  - '{OPENED}'\n", "has an interpolation"),
        ("defaults:\n  - /method/brain@_here_\nhydra: {searchpath: [pkg://antigravity]}\n", "configures hydra"),
        ("defaults:\n  - override hydra/launcher: joblib\n", "configures hydra"),
        ("_target_: learnreg.similarity.MSE\n", "describes a MSE, not a Method"),
        ("- 1\n", "holds a list"),
        ("_target_: !!python/object/apply:os.system ['touch opened.txt']\n", "not a valid method file"),
    ],
)
def test_what_a_method_file_must_not_say(text, message, tmp_path, nothing_is_written):
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_method(str(tmp_path / "method.yaml"))
    assert "method.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_another_one_starts_from_is_data_too(tmp_path, nothing_is_written):
    (tmp_path / "base.yaml").write_text(f"_target_: learnreg.methods.IterativeMethod\nstages: {{a: '{OPENED}'}}\n")
    (tmp_path / "method.yaml").write_text("defaults: [base, _self_]\n")
    (tmp_path / "base.yaml").touch()
    with pytest.raises(InputError, match="has an interpolation"):
        load_method(str(tmp_path / "method.yaml"))
    (tmp_path / "base.yaml").unlink()


def test_every_preset_is_built():
    assert {name: load_method(name) is not None for name in method_names()} == dict.fromkeys(method_names(), True)
    assert (config_dir() / "method").is_dir()


def test_a_package_is_trusted_by_name(tmp_path, monkeypatch):
    (tmp_path / "mylab_built").mkdir()
    (tmp_path / "mylab_built" / "__init__.py").write_text("")
    (tmp_path / "mylab_built" / "nets.py").write_text(
        "import os\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n\n\nsystem = os.system\n"
    )
    (tmp_path / "mylab_builtoratory.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    net = {"_target_": "mylab_built.nets.Net", "in_features": 1, "out_features": 1}
    with pytest.raises(UntrustedClassError, match=r'if you trust the package, give trust=\["mylab_built"\]') as caught:
        build(net, source="model.safetensors")
    assert caught.value.package == "mylab_built"
    for trust in (["mylab_built"], ["mylab_built.nets"]):
        assert isinstance(build(net, source="model.safetensors", trust=trust), nn.Linear)
    for target in ("mylab_builtoratory.Net", "os.system"):
        with pytest.raises(UntrustedClassError, match="not part of learnreg"):
            build({"_target_": target}, source="model.safetensors", trust=["mylab_built"])
    with pytest.raises(InputError, match=r"not a torch.nn.Module"):
        build({"_target_": "mylab_built.nets.system"}, source="model.safetensors", trust=["mylab_built"])
    with pytest.raises(InputError, match="cannot be imported"):
        build({"_target_": "mylab_built.nets.None"}, source="model.safetensors", trust=["mylab_built"])
    with pytest.raises(TypeError, match="must be a list of packages"):
        build(net, source="model.safetensors", trust="mylab_built")
    with pytest.raises(InputError, match="a name that Python can import"):
        build(net, source="model.safetensors", trust=[""])


TERM = Weighted(MSE(), 1.0)
VALUES = [0, 1, True, 2.5, None, "a", "b", (), (1,), (1, 2), (1, 2.5), ("a", "b"), (None,), {}, {"a": 1}, {"a": TERM}]
VALUES += [{1: "a"}, MSE(), TERM, (TERM,), partial(MSE), MSE, len]
HINTS = [int, float, bool, str, None, Any, int | None, float | str, Literal["a", 1], Literal["b"] | None, nn.Module]
HINTS += [Sequence[int], Sequence[float], tuple[int, int], tuple[int, ...], tuple[str, ...] | None, Similarity, TermT]
HINTS += [
    Mapping[str, int],
    dict[str, Any],
    Weighted[Similarity],
    Callable[[int], Similarity],
    Callable[..., Any] | None,
]
HINTS += [Mapping[str, Weighted[Similarity]] | Sequence[Weighted[Similarity]], int | Sequence[int], type(None)]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_what_fits_without_beartype_fits_with_it(hint):
    """For every kind of annotation that the classes of presets have; each has a value that is found to fit."""
    conf = BeartypeConf(is_pep484_tower=True)
    found = [value for value in VALUES if _surely_fits(value, hint)]
    assert found
    assert all(is_bearable(value, hint, conf=conf) for value in found)
