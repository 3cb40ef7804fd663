"""What is told before a training takes its first step."""

import csv
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import SimpleITK as sitk
import torch

from learnreg.apps import wiring
from learnreg.apps.train import main
from learnreg.data.datamodule import RegistrationData
from learnreg.data.formats import Subject, read_subjects
from learnreg.data.preprocessing import ModelSpace
from learnreg.errors import InputError
from learnreg.networks import Cascade, Pyramid, UNet
from learnreg.objective import Objective
from learnreg.similarity import MSE
from learnreg.supervision import LabelOverlap, LandmarkDistance
from learnreg.terms import Weighted
from learnreg.training.callbacks import AmortizationGap, Pictures, Progressive, SaveTemplate
from learnreg.training.module import RegistrationModule

SMALL = ("network=unet", "network.channels=[4,4]", "debug=step", "trainer.accelerator=cpu")


def write(file, shape=(12, 13, 14), value=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(file.name.encode())).random(shape)  # no two images are the same
    made = random.astype(np.float32) if value is None else np.full(shape, value, np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(made), str(file))


@pytest.fixture
def images(tmp_path):
    for k in range(6):
        write(tmp_path / "images" / f"s{k}.nii.gz")
        write(tmp_path / "labels" / f"s{k}.nii.gz", value=1)
    return tmp_path


def refused(capsys, monkeypatch, tmp_path, *arguments):
    """The one line of a training that does not begin."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"hydra.run.dir={tmp_path}/run"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    lines = told.err.strip().splitlines()
    assert len(lines) == 1, told.err
    assert "Training" not in told.out
    assert not (tmp_path / "run" / "metrics").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective/supervision=dice"], "images/s4.nii.gz has no labels, which this training needs; add its file"),
        (["supervision@objective.supervision=dice"], "s4.nii.gz has no labels"),
        (["network=pyramid", "network.channels=[4,4]", "network.segments=[1]"], "s4.nii.gz has no labels"),
        (["objective/supervision=landmarks"], "s0.nii.gz and 3 more have no landmarks"),
        (["data.validation=[4,5]"], "data.validation=[4, 5] holds one image, and a pair needs two"),
        (["data.train=[0,1]"], "data.train=[0, 1] holds one image, and a pair needs two"),
        (["data.validation=[5,9]"], "does not lie within the 6 images"),
        (["data.validation_pairs=0"], "data.validation_pairs must be at least 1"),
        (["data.batch_size=0"], "data.batch_size must be at least 1"),
        (["data.space.shape=[16,16]"], "data.space.shape has 2 sizes and images have 1 channel(s); set network.ndim=2"),
        (["data.space.shape=[16,16]", "network.ndim=2"], "s0.nii.gz is 3-D, but data.space.shape has 2 sizes"),
        (["network.in_channels=2"], "set network.ndim=3 network.in_channels=1."),
        (["network=conditioned", "network.network.ndim=2"], "set network.network.ndim=3"),
        (["network=oriented", "data.orientations=true"], "set data.orientations=false, or use a network without"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU; set bf16-mixed"),
        (["trainer.precision=bf16-true"], "would also compute coordinates in it; set 32-true or bf16-mixed"),
        (["compile=true", "gradient_checkpointing=true"], "exclude each other"),
        (["trainer.max_time=5min"], "trainer.max_time=5min must be days:hours:minutes:seconds"),
        (["trainer.precision=17"], "trainer.precision=17 is unknown"),
        (["callbacks.best.monitor=val/dcie"], "did you mean 'val/dice'?"),
        (["refine=-1"], "refine=-1 must be a number of at least 0"),
        (["network.channels=8"], "channels"),
        (["warmup=1"], "warmup is a share of the training, at least 0 and below 1, got 1"),
        (["schedule=polynomial", "schedule.power=0"], "Polynomial.power must be positive, got 0"),
    ],
)
def test_file_lists_tell(arguments, message, images, tmp_path, capsys, monkeypatch):
    (images / "labels" / "s4.nii.gz").unlink()
    usual = ["data.train=[0,4]", "data.validation=[4,6]", "data.space.shape=[16,16,16]"]
    given = {text.partition("=")[0] for text in arguments}
    usual = [text for text in usual if text.partition("=")[0] not in given]
    own = [text for text in SMALL if text.partition("=")[0] not in given]
    own = own if "network=conditioned" not in arguments else own[-2:]
    line = refused(capsys, monkeypatch, tmp_path, f"data.path={images}", *usual, *own, *arguments)
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.learning_rate=1"], "'optimizer.learning_rate'; choose from lr, weight_decay."),
        (
            ["objective/supervision=distillation", "objective.supervision.distillation.folder=x"],
            "did you mean 'objective.supervision.distillation.term.folder'?",
        ),
        (["learning_rate=1"], "refinement.learning_rate."),
        (["netwrk=unet"], "did you mean 'network'?"),
        (["objective/similrity=mse"], "did you mean 'objective/similarity'?"),
        (["-m", "seed=0,1", "sed=3"], "did you mean 'seed'?"),
        (["-m", "network=unet,unt", "seed=0"], "Could not find 'network/unt'"),
        (["-m", "experiment=quickstart", "network.chanels=[3],[4]"], "did you mean 'channels'?"),
        (["--config-dir=nowhere", "experiment=mine"], "No such folder: --config-dir nowhere"),
        (["--config-dir", "nowhere", "experiment=mine"], "No such folder: --config-dir nowhere"),
        (["seed=x"], "Value 'x' of type 'str' could not be converted to Integer"),
        (["network.channels=[4"], "no viable alternative"),
        (["experiment=quickstart", "network=learned_template"], "the chosen options do not fit together"),
    ],
)
def test_typing_errors_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    line = refused(capsys, monkeypatch, tmp_path, *arguments, f"hydra.sweep.dir={tmp_path}/sweep")
    assert message in line


@pytest.mark.parametrize("given", ["--config-dir={}", "-cd={}", "--config-dir {}"])
def test_own_configs_by_either_spelling(given, tmp_path, capsys, monkeypatch):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseeed: 3\n")
    arguments = given.format(tmp_path / "own").split()
    assert "did you mean 'seed'?" in refused(capsys, monkeypatch, tmp_path, *arguments, "experiment=mine")


def test_a_run_is_not_overwritten(images, tmp_path, capsys, monkeypatch):
    given = [f"data.path={images}", "data.train=[0,4]", "data.validation=[4,6]", "data.space.shape=[16,16,16]", *SMALL]
    run = tmp_path / "done"
    for name in ("checkpoints", ".hydra"):
        (run / name).mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("kept")
    for arguments in (
        [f"hydra.run.dir={run}"],
        [f"hydra.run.dir='{run}'", "resume=elsewhere/last.ckpt"],
        ["-m", f"hydra.sweep.dir={tmp_path}", "seed=0,1"],
        [f"hydra.run.dir={tmp_path}/${{oc.env:WHERE}}"],  # only known when the run begins
    ):
        monkeypatch.setenv("WHERE", "done")
        monkeypatch.setattr(sys, "argv", ["train.py", *given, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        line = capsys.readouterr().err.strip()
        assert ended.value.code == 2
        assert f"{run} already holds a run; continue it with resume=auto, or give" in line
        assert "\n" not in line
        if "$" not in arguments[0]:
            assert (run / ".hydra" / "overrides.yaml").read_text() == "kept"
    assert {file.name for file in run.iterdir()} == {".hydra", "checkpoints", "train.log"}  # the last is Hydra's, empty
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AmortizationGap(None, steps=[]), "at least 1, such as steps=.10, 50., got steps=.., pairs=2, every=1"),
        (lambda: AmortizationGap(None, steps=[0, 5]), r"steps=\[0, 5\]"),
        (lambda: AmortizationGap(None, every=0), "every=0"),
        (lambda: AmortizationGap(None, pairs=0), "pairs=0"),
        (lambda: Pictures("figures", every=0), "Pictures.every must be at least 1, got 0"),
        (lambda: Progressive([0.5, 0.2]), "rising from 0 to 1"),
        (lambda: Progressive([20, 50]), "rising from 0 to 1"),
        (lambda: SaveTemplate("template"), "an image such as template.nii.gz"),
        (lambda: SaveTemplate("template.nii.gz", spacing=0), "must be positive"),
        (lambda: SaveTemplate("template.nii.gz", covariates=[]), "one row of values"),
    ],
)
def test_arguments_of_callbacks_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_best_checkpoint_is_chosen_by_what_is_there(images, tmp_path, capsys, monkeypatch):
    for k in (4, 5):
        (images / "labels" / f"s{k}.nii.gz").unlink()
    given = [f"data.path={images}", "data.train=[0,4]", "data.validation=[4,6]", "callbacks.best.monitor=val/dice"]
    line = refused(capsys, monkeypatch, tmp_path, *given, "data.space.shape=[16,16,16]", *SMALL)
    assert "callbacks.best.monitor=val/dice needs labels, which no validation pair" in line


def test_headers_tell(images):
    def data(**changes):
        settings = {"train": [0, 4], "validation": [4, 6], **changes}
        return RegistrationData(images, ModelSpace(shape=[16, 16, 16]), **settings)

    data().check(["labels"])
    write(images / "labels" / "s2.nii.gz", (12, 13, 15), value=1)
    with pytest.raises(
        InputError, match=r"The labels .*s2.nii.gz have size \(15, 13, 12\), but the image .* \(14, 13, 12\)"
    ):
        data().check()
    write(images / "images" / "s2.nii.gz", (13, 14))
    with pytest.raises(InputError, match=r"s2.nii.gz is 2-D, but data.space.shape has 3 sizes"):
        data().check()
    (images / "images" / "s2.nii.gz").write_text("no image")
    with pytest.raises(InputError, match=r"s2.nii.gz cannot be read as an image"):
        data().check()


def test_the_middle_image_of_an_odd_block_is_checked_too(images):
    """It is its own partner in the reversed order, but trains with all others."""
    (images / "labels" / "s1.nii.gz").unlink()
    data = RegistrationData(images, ModelSpace(shape=[16, 16, 16]), train=[0, 3], validation=[4, 6])
    with pytest.raises(InputError, match=r"s1.nii.gz has no labels"):
        data.check(["labels"])


def test_landmarks_of_a_csv(images):
    rows = []
    for k in range(6):
        points = np.arange(9.0).reshape(3, 3) + k
        text = "x,y,z\n" + "\n".join(",".join(map(str, row)) for row in points) + "\n"
        (images / f"s{k}.csv").write_text(text)
        rows.append({"image": f"images/s{k}.nii.gz", "landmarks": f"s{k}.csv"})
    with (images / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "landmarks"])
        writer.writeheader()
        writer.writerows(rows)
    subjects = read_subjects(images / "data.csv")
    assert np.allclose(subjects[2].read().landmarks[0].numpy(), np.arange(9.0).reshape(3, 3) + 2)
    data = RegistrationData(images / "data.csv", ModelSpace(shape=[16, 16, 16]), train=[0, 4], validation=[4, 6])
    data.check(["landmarks"])
    fixed, moving = next(iter(data.val_dataloader()))
    assert fixed.landmarks.shape == moving.landmarks.shape == (1, 3, 3)
    assert np.allclose((moving.landmarks - fixed.landmarks).numpy(), 1)  # both images have moved by the same amount
    (images / "s3.csv").write_text("x,y,z\n1,2,3\n")
    with pytest.raises(InputError, match=r"s3.csv has 1 landmarks and .*s0.csv has 3"):
        data.check(["landmarks"])
    (images / "pairs.csv").write_text(
        "fixed,moving,fixed_landmarks,moving_landmarks\nimages/s0.nii.gz,images/s1.nii.gz,s0.csv,s1.csv\n"
        "images/s4.nii.gz,images/s5.nii.gz,,\n"
    )
    pairs = RegistrationData(images / "pairs.csv", ModelSpace(shape=[16, 16, 16]), train=[0, 1], validation=[1, 2])
    pairs.check()
    assert pairs.pairs("train")[0][1].landmarks == images / "s1.csv"


def test_what_a_training_needs():
    def needs(network, **supervision):
        terms = {name: Weighted(term) for name, term in supervision.items()}
        return RegistrationModule(network, Objective(MSE(), supervision=terms), lambda weights: None).needs

    plain, segmenting = UNet(channels=(4, 4)), Pyramid(channels=(4, 4), segments=[1])
    assert needs(plain) == ()
    assert needs(plain, dice=LabelOverlap(), marks=LandmarkDistance()) == ("labels", "landmarks")
    assert needs(plain, marks=LandmarkDistance(required=False)) == ()
    assert needs(segmenting) == needs(Cascade([plain, segmenting])) == ("labels",)
    assert needs(Pyramid(channels=(4, 4), segments=[1], segmentation=0.0)) == ()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("RMS.20141210_MCH.nii.gz", "RMS.20141210_MCH"),
        ("1.2.840.113.dcm", "1.2.840.113"),
        ("a.b.NII", "a.b"),
        ("v1.2.mha", "v1.2"),
        ("series.of.dicom", "series.of.dicom"),
        ("plain.nrrd", "plain"),
    ],
)
def test_a_name_ends_at_the_suffix_of_its_format(file, name, tmp_path):
    assert Subject(tmp_path / file).name == name


@pytest.mark.parametrize("fault", ["vanished", "damaged"])
def test_labels_that_vanish_or_break_during_a_training(fault, images, tmp_path, capsys, monkeypatch):
    """One line names the file; what was trained so far is kept, and goes on when the file is back."""
    labels, broken = images / "labels", []

    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                for file in labels.glob("*.nii.gz"):
                    broken.append((file, file.read_bytes()))
                    file.unlink() if fault == "vanished" else file.write_bytes(broken[-1][1][:40])

    built = wiring.build_callbacks
    monkeypatch.setattr(wiring, "build_callbacks", lambda config: [*built(config), Breaks()])
    given = [f"data.path={images}", "data.train=[0,4]", "data.validation=[4,6]", "data.space.shape=[16,16,16]"]
    given += ["data.memory=0", "objective/supervision=dice", "objective.supervision.dice.term.labels=[1]"]
    given += ["network=unet", "network.channels=[4,4]", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
    given += ["trainer.limit_train_batches=6", "logger=csv", f"hydra.run.dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "labels/s" in line]) == 1
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    for file, content in broken:
        file.write_bytes(content)
    monkeypatch.setattr(wiring, "build_callbacks", built)
    monkeypatch.setattr(sys, "argv", ["train.py", *given, f"resume={last}"])
    main()
    assert torch.load(last, weights_only=True)["global_step"] == 12
