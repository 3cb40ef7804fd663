"""The examples run at small size and find what they look for."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "examples"
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
