"""The code of the documentation runs as it stands."""

import re
import sys
from pathlib import Path

import pytest

from learnreg.configs.checks import check_targets
from learnreg.methods import load_method

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def ideas(tmp_path, monkeypatch):
    """A folder with the files that the page asks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ideas", raising=False)
    code = [block for block in blocks("docs/laboratory.md", "python") if block.startswith("# ideas.py")]
    (tmp_path / "ideas.py").write_text("\n".join(code), encoding="utf-8")
    for block in blocks("docs/laboratory.md", "yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_laboratory(ideas):
    names: dict = {"__name__": "laboratory"}
    for block in blocks("docs/laboratory.md", "python"):
        if block.startswith("# ideas.py"):
            continue
        exec(compile(block, "docs/laboratory.md", "exec"), names)
    assert set(names["errors"]) == {"dense velocity", "BSplineParametrization", "CompositiveParametrization"}
    assert max(names["errors"].values()) < 3.5  # mm, from 5.2
    assert any(weights.grad.abs().sum() > 0 for weights in names["network"].parameters())
    assert float(names["found"].arc.detach()) / 30 == pytest.approx(0.3, abs=0.01)
    laws = names["TestCauchy"]()
    laws.test_lowest_at_the_true_shift()
    laws.test_a_mask_really_counts()
    laws.test_gradcheck()


def test_the_laboratory_s_files_are_a_method_and_a_choice_of_a_training(ideas):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from learnreg.configs.files import config_dir
    from learnreg.configs.schema import register_schema

    stage = load_method("cauchy.yaml", trust=["ideas"]).stages["deformation"]
    assert type(stage.objective.similarity).__name__ == "Cauchy"
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose(
            "train",
            overrides=[
                "experiment=quickstart",
                f"hydra.searchpath=[file://{ideas}/my_conf]",
                "objective/similarity=cauchy",
                "network=translation",
            ],
        )
    objective, network = (OmegaConf.to_container(config[group], resolve=True) for group in ("objective", "network"))
    check_targets(objective)
    check_targets(network)
    assert objective["similarity"] == {"_target_": "ideas.Cauchy"}
    assert network == {"_target_": "ideas.Translation", "channels": 16}
