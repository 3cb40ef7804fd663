"""A network, a similarity and a stage of one's own, from the training to every command that uses its checkpoint."""

import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import learnreg
from learnreg.apps.main import main
from learnreg.errors import UntrustedClassError
from tests.test_configs import ROOT, run

pytestmark = pytest.mark.slow

PACKAGE = """
from learnreg.networks import UNet
from learnreg.optimization import FieldStage
from learnreg.similarity import MSE


class Net(UNet):
    pass


class Squares(MSE):
    pass


class Slow(FieldStage):
    pass
"""
TRAIN = (
    "debug=step",
    "data.path=data",
    "data.train=[0,2]",
    "data.validation=[2,4]",
    "data.space.shape=[16,16,16]",
    "network=unet",
    "network._target_=mylab.Net",
    "network.channels=[4,4]",
    "objective=mse",
    "objective.similarity._target_=mylab.Squares",
    "refinement._target_=mylab.Slow",
    "trainer.accelerator=cpu",
)


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
    """A package and four labeled images; commands run in their folder."""
    (tmp_path / "mylab.py").write_text(PACKAGE)
    values = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for k in range(4):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[3 : 8 + k % 2, 4:9, 3:8] = 1
        image = (labels + values.random(labels.shape) / 4).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "data" / "images" / f"s{k}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "data" / "labels" / f"s{k}.nii.gz"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def train(folder, *arguments):
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return run(str(ROOT / "train.py"), *arguments, cwd=folder, PYTHONPATH=paths)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        main([str(a) for a in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_classes_of_a_package_are_trusted_in_one_way(laboratory, capsys):
    done = train(laboratory, *TRAIN, "hydra.run.dir=run", "report_pairs=1", "refine=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| refined" in done.stdout  # the report reads the checkpoint
    best, last = (laboratory / "run" / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    pair = "data/images/s2.nii.gz", "data/images/s3.nii.gz"

    with pytest.raises(UntrustedClassError, match=r'needs mylab.Net, .* give trust=\["mylab"\]\.'):
        learnreg.register(*pair, checkpoint=best)
    for command in (
        ("register", *pair, "-o", "out", "--checkpoint", best),
        ("evaluate", "data", "--block", "2:4", "--checkpoint", best, "-o", "table"),
        ("export", best, "-o", "mine.safetensors"),
    ):
        assert refused(capsys, *command).endswith("if you trust the package, give --trust mylab.")
        main([str(a) for a in (*command, "--trust", "mylab", *(["--refine", "2"] if command[0] != "export" else []))])
    assert {p.name for p in (laboratory / "out").iterdir()} >= {"warped.nii.gz", "transform.h5", "metrics.json"}
    assert "refine 2" in (laboratory / "table" / "table.md").read_text()
    result = learnreg.register(*pair, checkpoint="mine.safetensors", trust=["mylab"])
    network = learnreg.load_checkpoint(best, trust=["mylab"]).network
    assert type(network).__module__ == "mylab"
    assert torch.isfinite(result.warped.data).all()

    learnt = ["data.path=data", "data.train=[0,2]", "data.validation=[2,4]", "data.space.shape=[16,16,16]"]
    plain = [
        *learnt,
        "debug=step",
        "network=unet",
        "network.channels=[4,4]",
        "objective=mse",
        "trainer.accelerator=cpu",
    ]
    for key in ("start", "resume"):
        failed = train(laboratory, *plain, f"{key}={last}", f"hydra.run.dir={key}")
        assert failed.returncode == 2
        assert failed.stderr.strip().splitlines()[-1].endswith("if you trust the package, give trust=[mylab].")
        assert len(failed.stderr.strip().splitlines()) == 1
    done = train(laboratory, *plain, f"start={last}", "trust=[mylab]", "hydra.run.dir=start")
    assert done.returncode == 0, done.stderr[-3000:]
    done = train(laboratory, *TRAIN, "trainer.max_epochs=2", f"resume={last}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_method_file_names_classes_of_a_trusted_package(laboratory, capsys):
    (laboratory / "mine.yaml").write_text(
        "defaults:\n  - /method/fast@_here_\n  - _self_\nstages:\n  affine: null\n  deformation:\n"
        "    factors: [4]\n    iterations: [2]\n    _target_: mylab.Slow\n"
    )
    pair = "data/images/s2.nii.gz", "data/images/s3.nii.gz"
    for command in (
        ("register", *pair, "-o", "out", "--method", "mine.yaml"),
        ("evaluate", "data", "--block", "2:4", "--method", "mine.yaml"),
        ("template", "data", "-o", "mean", "--rounds", "1", "--method", "mine.yaml"),
    ):
        assert refused(capsys, *command).endswith("if you trust the package, give --trust mylab.")
        main([*command, "--trust", "mylab"])
    stages = learnreg.load_method("mine.yaml", trust=["mylab"]).stages
    assert type(stages["deformation"]).__name__ == "Slow"
    assert len(learnreg.register(*pair, "mine.yaml", trust=["mylab"]).history) == 1


@pytest.mark.parametrize("override", ["+network._convert_=all", "network._target_=torch.nn.Identity"])
def test_what_a_checkpoint_could_not_hold_is_refused_before_the_training(override, laboratory):
    done = train(laboratory, *TRAIN, override, "hydra.run.dir=run")
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (laboratory / "run" / "checkpoints").exists()
