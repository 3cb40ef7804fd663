"""Every command of the README runs as it stands, in short form: one step on tiny images."""

import csv
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from learnreg.apps.main import main
from tests.test_configs import small_data  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"(?:python train\.py|^learnreg) .*", re.M)


def commands():
    """The commands of all blocks, without comments and with continued lines joined."""
    for block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        for found in COMMAND.findall(block.replace("\\\n", " ")):
            yield shlex.split(found, comments=True)


TRAININGS = [words[2:] for words in commands() if words[0] == "python"]
OTHERS = [words[1:] for words in commands() if words[0] == "learnreg"]
SHORT = ["debug=step", "trainer.accelerator=cpu", "report_pairs=0", "callbacks.gap=null"]
OF_TRANSFORMS = {"apply", "invert", "jacobian"}
SMALL = "data.space.shape=[32,32,32]"


def write(folder, name, values):
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / name))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_data):  # noqa: F811
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    images = sorted((small_data / "hippocampus" / "images").glob("*.nii.gz"))
    with (folder / "my.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels", "group", "age"])
        for k, image in enumerate(images[:100]):
            rows.writerow([image, str(image).replace("images", "labels"), k // 2, 20 + k % 60])
    (folder / "my_configs" / "experiment").mkdir(parents=True)
    (folder / "my_configs" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - hippocampus\n  - override /network: unet\n"
    )
    for name in ("FIXED", "MOVING", "EXPIRATION", "INSPIRATION"):
        shutil.copy(images[len(name)], folder / f"{name}.nii.gz")
    shutil.copy(str(images[6]).replace("images", "labels"), folder / "LABELS.nii.gz")
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
    monkeypatch.setattr(sys, "argv", sys.argv)
    return workplace


def trained(here):
    """A checkpoint of a training, once."""
    if not (here / "best.ckpt").exists():
        call("train", "experiment=hippocampus", *SHORT, SMALL, "hydra.run.dir=first")
        shutil.copy(here / "first" / "checkpoints" / "best.ckpt", here / "best.ckpt")


def short(words):
    """The same training on tiny images, for one step; `...` stands for what the reader adds."""
    given = [word for word in words if word != "..." and not word.startswith(("trainer.max_time", "data.space.shape"))]
    added = list(SHORT)
    text = " ".join(given)
    if "experiment=quickstart" in text:
        added += ["data.spacing=8", "data.subjects=2", "data.validation_subjects=2"]
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


@pytest.mark.parametrize(
    "words", [w for w in OTHERS if w[0] in {"register", "template", "evaluate", "check", *OF_TRANSFORMS}], ids=" ".join
)
def test_a_command_of_the_readme(words, here, tmp_path):
    """`OUT/transform.h5` is that of a registration."""
    trained(here)
    names = {name: f"{name}.nii.gz" for name in ("FIXED", "MOVING", "LABELS", "EXPIRATION", "INSPIRATION")}
    names |= {"OUT": str(tmp_path / "OUT"), "$LEARNREG_DATA/hippocampus": "FOLDER", "160:200": "0:2"}
    names |= {"OUT/transform.h5": str(tmp_path / "before" / "transform.h5"), "TABLE": str(tmp_path / "TABLE")}
    if words[0] in OF_TRANSFORMS:
        call(
            "register", "FIXED.nii.gz", "MOVING.nii.gz", "-o", str(tmp_path / "before"), "--method", "rigid", "--quiet"
        )
    given = [names.get(word, names.get(word.removesuffix(".nii.gz"), word)) for word in words]
    call(*given)


def test_every_command_is_tried():
    assert len(TRAININGS) >= 18
    known = {"register", "template", "evaluate", "check", "runs", "export", *OF_TRANSFORMS}
    assert {words[0] for words in OTHERS} == known


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
