"""Every command of the README and of the pages runs as it stands, in short form: one step on tiny images."""

import csv
import re
import shlex
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.networks.nets import RegUNet

import learnreg
from learnreg import Affine, read_image, write_transform
from learnreg.apps.main import main
from tests.test_configs import small_data  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.M | re.S)  # language and text
COMMAND = re.compile(r"(?:python train\.py|^learnreg) .*", re.M)


# Other pages: tests/test_docs.py runs laboratory.md, tests/apps/test_sweeps.py what training.md shows, tests/test_slurm.py and
# tests/training/test_scale.py what scaling.md shows of trainings, tests/test_prepare.py the trainings of data.md.
PAGES = {
    "README.md",
    *(f"docs/{name}.md" for name in ("quickstart", "install", "register", "train", "presets", "benchmarks")),
}
LIBRARY_PAGES = {*PAGES, *(f"docs/{name}.md" for name in ("cli", "conventions", "data", "scaling", "troubleshooting"))}
TABLES = ROOT / "docs" / "coming_from.md"
INLINE = re.compile(r"`((?:learnreg |python train\.py )[^`]+)`")
EXPRESSION = re.compile(r"`(learnreg\.[A-Za-z_]+[.(][^`]+)`")


def commands():
    """The commands of all blocks, each once, without comments and with continued lines joined."""
    found = {}
    for page in sorted(LIBRARY_PAGES):
        for language, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            for line in COMMAND.findall("" if language else block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                if page in PAGES or words[0] == "learnreg":
                    found[tuple(words)] = page
    for line in INLINE.findall(TABLES.read_text(encoding="utf-8")):
        found.setdefault(tuple(shlex.split(line)), TABLES.name)
    return [list(words) for words in found]


TRAININGS = [words[2:] for words in commands() if words[0] == "python"]
OTHERS = [words[1:] for words in commands() if words[0] == "learnreg"]
SHORT = ["debug=step", "trainer.accelerator=cpu", "report_pairs=0", "callbacks.gap=null"]
OF_TRANSFORMS = {"apply", "invert", "jacobian", "compose", "convert"}
OF_RUNS = {"runs", "export"}  # tried with the trainings below
SMALL = "data.space.shape=[32,32,32]"
IMAGES = ("FIXED", "MOVING", "EXPIRATION", "INSPIRATION", "LABELS", "FIXED_LABELS", "FIXED_MASK", "MOVING_MASK")


def write(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / name))


def preset_of_one_s_own():
    """The YAML file that presets.md shows."""
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    return re.search(r"^```yaml\n(# mine\.yaml.*?)^```$", page, re.M | re.S)[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_data):  # noqa: F811
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    images = sorted((small_data / "hippocampus" / "images").glob("*.nii.gz"))
    with (folder / "my.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels", "group", "age"])
        for k, image in enumerate(images[:100]):
            rows.writerow([image, str(image).replace("images", "labels"), f"p{k // 2:02}", 20 + k % 60])
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["fixed", "moving"], *zip(images[:2], images[2:4], strict=True)])
    (folder / "my_configs" / "experiment").mkdir(parents=True)
    (folder / "my_configs" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - hippocampus\n  - override /network: unet\n"
    )
    for name in IMAGES[:4]:
        shutil.copy(images[len(name)], folder / f"{name}.nii.gz")
    for name, image in {"LABELS": images[6], "FIXED_LABELS": images[5]}.items():
        shutil.copy(str(image).replace("images", "labels"), folder / f"{name}.nii.gz")
    for name in ("FIXED_MASK", "MOVING_MASK"):
        write(folder, f"{name}.nii.gz", np.ones((10, 12, 8), np.uint8))
    write_transform(Affine.translation([1.0, 0.0, 0.0]), read_image(folder / "FIXED.nii.gz").grid, folder / "START.h5")
    volumes = [sitk.ReadImage(str(folder / "FIXED.nii.gz"))] * 3
    sitk.WriteImage(sitk.JoinSeries(volumes), str(folder / "BOLD.nii.gz"))
    (folder / "mine.yaml").write_text(preset_of_one_s_own())
    for k in range(2):
        write(folder / "FOLDER" / "images", f"{k}.nii.gz", sitk.GetArrayFromImage(sitk.ReadImage(str(images[k]))))
        write(
            folder / "FOLDER" / "labels",
            f"{k}.nii.gz",
            sitk.GetArrayFromImage(sitk.ReadImage(str(images[k]).replace("images", "labels"))),
        )
    points = np.array([[2, 2, 2], [4, 6, 5], [5, 3, 7], [3, 8, 4]])
    lines = ["f_i,f_j,f_k,m_i,m_j,m_k", *(",".join(map(str, (*p, *(p + 1)))) for p in points)]
    (folder / "POINTS.csv").write_text("x,y,z\n-20,-25,20\n")
    (folder / "POINTS.txt").write_text("point\n1\n-20 -25 20\n")
    (folder / "PAIRS.csv").write_text("\n".join(lines) + "\n")
    return folder


def call(*arguments):
    sys.argv = ["train.py", *arguments]
    main(list(arguments))


@pytest.fixture
def here(workplace, small_data, monkeypatch):  # noqa: F811
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("LEARNREG_DATA", str(small_data))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("LEARNREG_MODELS", str(workplace / "models"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    return workplace


def trained(here):
    """A checkpoint of a training, and its model by name, once."""
    if not (here / "best.ckpt").exists():
        call("train", "experiment=hippocampus", *SHORT, SMALL, "hydra.run.dir=first")
        shutil.copy(here / "first" / "checkpoints" / "best.ckpt", here / "best.ckpt")
        (here / "models").mkdir()
        call("export", "best.ckpt", "-o", "models/mine.safetensors")


def short(words):
    """The same training on tiny images, for one step; `...` stands for what the reader adds."""
    given = [word for word in words if word != "..." and not word.startswith(("trainer.max_time", "data.space.shape"))]
    added = list(SHORT)
    text = " ".join(given)
    if "experiment=quickstart" in text:
        added += ["data.spacing=8", "data.subjects=2", "data.validation_subjects=2"]
    elif "_2d" in text:
        added += ["data.space.shape=[32,32]"]
    else:
        added += [SMALL]
    if "data.path=my.csv" in text and "data.train" not in text:
        added += ["data.train=[0,8]", "data.validation=[8,12]"]
    if "trainer=ddp" in text:
        given = [word for word in given if not word.startswith("trainer.")]
        added += ["trainer.devices=1"]
    return [*given, *(word for word in added if word.partition("=")[0] not in {w.partition("=")[0] for w in given})]


@pytest.mark.parametrize("words", TRAININGS, ids=" ".join)
def test_a_training_of_the_readme(words, here, tmp_path, capsys):
    if any(word.startswith("start=") for word in words):
        trained(here)
    arguments = short(words)
    if "-m" not in arguments:
        arguments.append(f"hydra.run.dir={tmp_path}/run")
    if "logger=wandb" in words and find_spec("wandb") is None:
        with pytest.raises(SystemExit):
            call("train", *arguments)
        assert "pip install 'learnreg[wandb]'" in capsys.readouterr().err
        return
    call("train", *arguments)
    runs = list(here.glob("runs/compared/*/")) if "-m" in arguments else [tmp_path / "run"]
    assert len(runs) == (6 if "-m" in arguments else 1)
    for run in runs:
        assert (run / "checkpoints" / "best.ckpt").exists()
    if "-m" in arguments:
        capsys.readouterr()
        call("runs", "runs/compared")
        assert capsys.readouterr().out.count("\n") == 2 + 3


@pytest.mark.parametrize("words", [w for w in OTHERS if w[0] not in OF_RUNS], ids=" ".join)
def test_a_command_of_the_readme(words, here, tmp_path):
    """`OUT/transform.h5` is that of a registration."""
    trained(here)
    names = {name: f"{name}.nii.gz" for name in IMAGES}
    names |= {"OUT": str(tmp_path / "OUT"), "$LEARNREG_DATA/hippocampus": "FOLDER", "160:200": "0:2", "DATA": "FOLDER"}
    names |= {"OUT/transform.h5": str(tmp_path / "before" / "transform.h5"), "TABLE": str(tmp_path / "TABLE")}
    names |= {"64": "16"}  # of --shape 64 64 64, which takes 13 presets minutes
    if words[0] in OF_TRANSFORMS or words[0] == "report":
        folder = names["OUT"] if words[0] == "report" else str(tmp_path / "before")
        call("register", "FIXED.nii.gz", "MOVING.nii.gz", "-o", folder, "--method", "rigid", "--quiet")
    given = [names.get(word, names.get(word.removesuffix(".nii.gz"), word)) for word in words]
    if "-o" in words and words[words.index("-o") + 1] not in names:
        given[words.index("-o") + 1] = str(tmp_path / words[words.index("-o") + 1])
    call(*given)
    if "-o" in words:
        assert Path(given[words.index("-o") + 1]).exists()


def test_a_preset_of_one_s_own(here, tmp_path):
    call("register", "FIXED.nii.gz", "MOVING.nii.gz", "-o", str(tmp_path / "out"), "--method", "mine.yaml")
    assert (tmp_path / "out" / "transform.h5").exists()


def test_every_command_is_tried():
    assert len(TRAININGS) >= 21
    others = {"report", "series", "template", "evaluate", "check", "methods", "doctor", "batch"}
    known = {"register", *others, *OF_TRANSFORMS, *OF_RUNS}
    assert {words[0] for words in OTHERS} == known


def expressions():
    return list(dict.fromkeys(EXPRESSION.findall(TABLES.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("text", expressions())
def test_an_expression_of_the_tables(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    grid = learnreg.Grid.regular((16, 16, 16))
    fixed, moving = (learnreg.Image(torch.rand(1, 1, 16, 16, 16), grid) for _ in range(2))
    learnreg.write_image(fixed.data[0], grid, tmp_path / "fixed.nii.gz")
    values = {
        "learnreg": learnreg,
        "torch": torch,
        "partial": partial,
        "grid": grid,
        "fixed": fixed,
        "moving": moving,
        "objective": learnreg.Objective(learnreg.similarity.MSE()),
        "transform": learnreg.Affine.translation([1.0, 0.0, 0.0]),
        "velocity": torch.zeros(1, 3, 16, 16, 16),
        "labels": torch.ones(1, 1, 16, 16, 16, dtype=torch.long),
        "module": RegUNet(3, 2, 8, depth=2, out_channels=3),
    }
    assert eval(text, values) is not None


def test_expressions_are_found():
    assert len(expressions()) >= 35


def test_export_and_register_of_the_readme(here, tmp_path):
    trained(here)
    call("export", "best.ckpt", "-o", str(tmp_path / "mine.safetensors"))
    call(
        "register",
        "FIXED.nii.gz",
        "MOVING.nii.gz",
        "-o",
        str(tmp_path / "out"),
        "--checkpoint",
        str(tmp_path / "mine.safetensors"),
    )
