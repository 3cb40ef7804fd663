"""The examples run at small size and find what they look for."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FOLDER = SCRIPTS / "examples"
CASES = [
    ("affine", ["--spacing", "4"], "affine_2d", 0.1),
    ("affine", ["--ndim", "3", "--spacing", "6"], "affine_3d", 0.1),
    ("demons", ["--spacing", "3"], "demons_2d", 0.4),
    ("bspline", ["--spacing", "3"], "bspline_2d", 0.5),
    ("bspline", ["--spacing", "3", "--wendland"], "wendland_2d", 0.5),
    ("bspline", ["--ndim", "3", "--spacing", "4"], "bspline_3d", 0.5),
    ("diffeomorphic_bspline", ["--spacing", "3"], "diffeomorphic_bspline_2d", 0.4),
    ("circle_to_c", ["--spacing", "2"], "circle_to_c", 0.2),
]


@pytest.mark.parametrize(("module", "given", "picture", "share"), CASES, ids=[c[2] for c in CASES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_example(module, given, picture, share, tmp_path, monkeypatch, capsys):
    """The error afterwards is at most this share of that before."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before, after = importlib.import_module(module).main([*given, "--output", str(tmp_path)])
    assert after < share * before
    assert (tmp_path / f"{picture}.png").stat().st_size > 10_000
    assert picture.split("_")[0] in capsys.readouterr().out


def test_every_example_is_tried():
    assert {file.stem for file in FOLDER.glob("*.py")} == {"common", *(case[0] for case in CASES)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_linear_accuracy(tmp_path, monkeypatch, capsys):
    """Tissue to the border of both views: SimpleITK finds the truth of the script, and so does learnreg."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("linear_accuracy")
    results = module.main(["--case", "shift", "--case", "turn", "--kind", "rigid", "--output", str(tmp_path)])
    means = {(r.case, r.tool): r.mean for r in results if r.kind != "deformable"}
    shift, turn = module.SYNTHETIC
    assert means[shift, "start"] == pytest.approx(math.hypot(6, -5, 4), abs=1e-6)
    for case in (shift, turn):
        assert means[case, "SimpleITK"] < 0.1  # mm, of voxels of 1 mm
        assert means[case, "learnreg"] < 0.2
    assert not module.missed([r for r in results if r.kind == "rigid"])
    assert f"| {turn} |" in (tmp_path / "linear_accuracy.md").read_text()
    assert len(json.loads((tmp_path / "linear_accuracy.json").read_text())) == len(results)
    assert "real images are left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="No case has nothing in its name"):
        module.main(["--case", "nothing"])


def test_benchmark_of_airlab_without_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    given = ["--threads", "1", "iterations", "--size", "8", "--airlab", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given])
    with pytest.raises(SystemExit, match=f"{tmp_path} is no source of AirLab.*git clone"):
        importlib.import_module("benchmark").main()
