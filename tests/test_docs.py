"""The code of the documentation runs as it stands."""

import html
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from learnreg.configs.checks import check_targets
from learnreg.io import write_image
from learnreg.methods import load_method
from tests.conftest import blob_image, make_grid
from tests.test_public import public

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", ["README.md", *(f"docs/{n}.md" for n in ("quickstart", "register", "conventions"))])
def test_the_python_of_a_page(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = make_grid("RAS", (20, 22, 24))
    for name, shift in {"fixed": 0.0, "moving": 2.0}.items():
        image = blob_image(grid, (shift, 0.0, 0.0))
        write_image(image.data[0], grid, f"{name}.nii.gz")
        write_image(image.labels[0], grid, f"{name}_labels.nii.gz")
    names: dict = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    if page == "docs/register.md":
        assert set(names["carried"].unique().tolist()) == {0, 1, 2}
    elif page == "docs/conventions.md":
        printed = capsys.readouterr().out.replace(" ", "")
        assert "[1,10,20,30,3]" in printed and "[3.,4.,3.]" in printed and "[4.,0.,0.]" in printed
    else:
        inside = names["case"].fixed.labels[:, 0] > 0
        mapped, true = (t.map_grid(names["case"].fixed.grid) for t in (names["result"].transform, names["case"].truth))
        assert float((mapped - true).norm(dim=-1)[inside].mean()) < 3.5  # mm, from 5.2
        assert Path("transform.h5").exists()


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


PAGES = sorted(file.relative_to(ROOT / "docs").with_suffix("").as_posix() for file in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            folder / "doctrees",
            ROOT / "docs",
            folder / "html",
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_in_the_tree(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        assert page == "index" or f'href="{page}.html"' in home, page


def test_every_link_of_the_site_leads_somewhere(site):
    """Links between pages and within them; Sphinx checks those of Markdown, not those of HTML and pictures."""
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            path, _, anchor = html.unescape(link).partition("#")
            if "://" in path or path.startswith(("mailto:", "data:")):
                continue
            goal = (page.parent / path.partition("?")[0]).resolve() if path else page
            assert goal.exists(), (page.name, link)
            if anchor and goal.suffix == ".html":
                assert f'id="{unquote(anchor)}"' in html.unescape(goal.read_text(encoding="utf-8")), (page.name, link)


def test_every_public_name_is_on_the_site(site):
    import learnreg

    text = "".join(file.read_text(encoding="utf-8") for file in (site / "api").glob("*.html"))
    shown = set(re.findall(r'id="learnreg(?:\.[a-z]+)?\.(\w+)"', text))
    for stub in (ROOT / "learnreg").rglob("__init__.pyi"):
        module = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
        for name in public(stub):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                assert name in shown, f"{module.__name__}.{name}"
    assert {"register", "Grid", "LNCC", "Pyramid"} <= shown
    assert learnreg.__version__ in (site / "index.html").read_text(encoding="utf-8")


def test_every_command_is_on_the_page_of_commands(site):
    text = (site / "cli.html").read_text(encoding="utf-8")
    for command in (
        "register",
        "batch",
        "bids",
        "evaluate",
        "check",
        "apply",
        "invert",
        "jacobian",
        "template",
        "export",
    ):
        assert f'id="learnreg-{command}"' in text
        assert re.search(rf"learnreg {command}(?: |\n)", html.unescape(re.sub("<[^>]+>", "", text)))


def test_links_of_files_outside_of_the_site():
    for file in ("README.md", "CONTRIBUTING.md", "models/hippocampus.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            assert "://" in link or (ROOT / file).parent.joinpath(link).exists(), (file, link)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
