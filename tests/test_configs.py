"""Every experiment is composed, built and run for a step; typing errors are told."""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import SimpleITK as sitk
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from learnreg.configs.checks import check_targets, targets, unknown_key
from learnreg.configs.compose import compose_config, compose_preset
from learnreg.configs.files import config_dir, method_names
from learnreg.configs.schema import fastest_precision, register_schema
from learnreg.data import read_subjects
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.methods import load_method
from learnreg.networks import UNet
from learnreg.networks.checkpoint import load_checkpoint
from learnreg.optimization import FieldStage
from learnreg.training.module import RegistrationModule
from tests.conftest import blob_image

ROOT = Path(__file__).resolve().parents[1]


def names(group):
    return sorted(file.stem for file in (config_dir() / group).glob("*.yaml"))


EXPERIMENTS = names("experiment")
PUBLIC = (
    "abdomen_mrct",
    "ixi",
    "lumir",
    "nlst",
    "oasis",
)  # trained in test_prepare.py, from stand-ins of their archives
SMALLER = {"brain": ["data.space.shape=[32,32,32]"]}


def run(*arguments, cwd=ROOT, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    for name in ("LEARNREG_DEBUG", "LEARNREG_DATA"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """As many tiny labeled images as an experiment's blocks ask for, in the folders it expects."""
    folder = tmp_path_factory.mktemp("data") / "hippocampus"
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(160):
        labels = np.zeros((10, 12, 8), np.uint8)
        labels[3:6, 4:8, 2:5], labels[6:8, 4:8, 2:5] = 1, 2
        values = labels + rng.random(labels.shape)
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), str(folder / "images" / f"{i:03}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labels" / f"{i:03}.nii.gz"))
    (folder.parent / "brain").symlink_to(folder)
    return folder.parent


def composed(key, *overrides):
    """One part of a training's configuration, its keys checked."""
    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        part = OmegaConf.to_container(compose("train", overrides=list(overrides))[key], resolve=True)
    check_targets(part)
    return part


PARTS = ("data", "network", "objective", "consistency", "method", "refinement", "optimizer", "schedule")
GROUPS = (*PARTS, *(f"objective/{kind}" for kind in ("similarity", "penalties", "supervision")))


NEEDED = {"data=folder": ["data.path=/data", "data.train=[0,4]", "data.validation=[4,8]"]}
REFUSED = ("learned_template", "conditional_template")  # with data whose shape is not a key


def parts(*overrides):
    """The configuration of what is built, without paths of a run."""
    register_schema()
    config = compose_config(config_dir(), "train", overrides)
    return {key: OmegaConf.to_container(config[key], resolve=True) for key in PARTS if config[key] is not None}


def chosen(config, group):
    """The classes that an option of a group stands for."""
    part = config
    for key in (group + "/similarity" if group == "objective" else group).split("/"):
        part = part[key]
    return targets(part)[: 2 if "objective" in group else 1]


# Groups whose options can be chosen together, since none takes values of another: a template takes the shape of the
# data, a supervision the stages of the method, and an objective brings its similarity, penalties and supervision.
TOGETHER = (
    ("network", "objective/similarity", "objective/penalties", "objective/supervision"),
    ("data", "objective", "consistency", "method", "refinement", "optimizer", "schedule"),
)


def choices(refused=()):
    """Choices of options as of a command line, each option of every group once, as few as can be."""
    for groups in TOGETHER:
        options = [[name for name in names(group) if name not in refused] for group in groups]
        for k in range(max(map(len, options))):
            yield [(group, own[k]) for group, own in zip(groups, options, strict=True) if k < len(own)]


@cache
def chosen_alone(*choice):
    """The classes without an experiment; each is asked for as often as there are experiments."""
    groups = {group for group, _ in choice}
    config = parts(*(["data=hippocampus"] if "data" not in groups else []), *overrides(choice))
    return {group: chosen(config, group) for group, _ in choice}


def overrides(choice):
    given = [f"{group}={option}" for group, option in choice]
    return [*given, *(word for one in given for word in NEEDED.get(one, []))]


def test_every_group_is_chosen_from():
    assert sorted(group for groups in TOGETHER for group in groups) == sorted(GROUPS)
    tried = [one for choice in choices() for one in choice]
    assert sorted(tried) == sorted((group, option) for group in GROUPS for option in names(group))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.slow
def test_every_option_composes_with_every_experiment(experiment, monkeypatch):
    """It can be built, and it is what was chosen: an experiment sets no key of an option that can be replaced."""
    monkeypatch.setenv("LEARNREG_DATA", "/data")
    refused = REFUSED if experiment == "quickstart" else ()
    for option in refused:
        with pytest.raises(InterpolationKeyError, match=r"data\.space"):
            parts(f"experiment={experiment}", f"network={option}")
    for choice in choices(refused):
        config = parts(f"experiment={experiment}", *overrides(choice))
        try:
            check_targets(config)
        except InputError as error:
            pytest.fail(f"experiment={experiment} {choice}: {error}")
        assert {group: chosen(config, group) for group, _ in choice} == chosen_alone(*choice), choice


PRESETS = [
    file.relative_to(config_dir()).with_suffix("").as_posix() for file in (config_dir() / "method").rglob("*.yaml")
]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_what_hydra_composes(name):
    """To the order of its keys, which is that of the stages."""
    expected = OmegaConf.to_container(compose_config(config_dir(), name), resolve=False)
    for key in name.split("/")[:-1]:
        expected = expected[key]
    assert json.dumps(compose_preset(config_dir(), name)) == json.dumps(expected)


TERMS = [
    *(f"objective/similarity={name}" for name in names("objective/similarity") if name != "unused"),
    *(f"objective/penalties={name}" for name in names("objective/penalties")),
    "objective/penalties=[diffusion,folding]",
]
SUPERVISION = [*names("objective/supervision"), "[dice,landmarks]"]


@pytest.mark.parametrize("name", SUPERVISION)
@pytest.mark.slow
def test_every_supervision_teaches_a_network(name):
    grid = Grid.regular((16, 16, 16))
    marks = torch.rand(1, 4, 3)
    fixed, moving = (
        replace(blob_image(grid, c), landmarks=marks + torch.tensor(c)) for c in ((0.0,) * 3, (2.0, -1.0, 1.0))
    )
    settings = composed("objective", f"objective/supervision={name}", "method=affine")
    objective, network = instantiate(settings, _convert_="all"), UNet(channels=(4, 4))
    loss = objective(fixed, moving, network(fixed, moving))
    taught = torch.stack([loss.terms[term] for term in objective.supervision]).sum()
    taught.backward()
    assert network.head.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("override", TERMS)
@pytest.mark.slow
def test_every_term_serves_a_network_and_a_stage(override):
    """One step of each: the objective of the configuration, over weights and over the field of a pair."""
    grid = Grid.regular((16, 16, 16))
    fixed, moving = (Image(blob_image(grid, c).data, grid) for c in ((0.0, 0.0, 0.0), (2.0, -1.0, 1.0)))
    objective = instantiate(composed("objective", override), _convert_="all")
    network = UNet(channels=(4, 4))
    objective(fixed, moving, network(fixed, moving)).total.backward()
    assert network.head.conv.weight.grad.abs().sum() > 0
    stage = FieldStage(objective, factors=(1,), iterations=(15,), learning_rate=0.2, tolerance=0)
    losses = stage(fixed, moving).history[0].losses
    assert min(losses) < losses[0]


@pytest.mark.parametrize("name", names("network"))
@pytest.mark.slow
def test_every_network_takes_a_step_of_training(name):
    """Instantiated as it is configured, with the objective that weighs what a conditioned one is asked for."""
    torch.manual_seed(0)
    network = instantiate(composed("network", f"network={name}", "data.space.shape=[32,32,32]"), _convert_="all")
    ndim = getattr(network, "ndim", 3)  # MONAI's networks do not say
    grid, known = Grid.regular((32,) * ndim), torch.tensor([[0.5]])
    batch = tuple(replace(blob_image(grid, c[:ndim]), covariates=known) for c in ((0.0, 0.0, 0.0), (2.0, -1.0, 1.0)))
    objective = instantiate(composed("objective", "objective=mse"), _convert_="all")
    module = RegistrationModule(network, objective, partial(torch.optim.SGD, lr=0.1))
    module.log = module.log_dict = lambda *args, **kwargs: None
    before = [p.detach().clone() for p in module.network.parameters()]
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(batch, 0).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.network.parameters(), strict=True))
    assert all(p.isfinite().all() for p in module.network.parameters())


@pytest.mark.parametrize("name", names("consistency"))
def test_every_consistency_is_a_module(name):
    assert instantiate(composed("consistency", f"consistency={name}")).weight > 0


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in PUBLIC])
@pytest.mark.slow
def test_every_experiment_runs_for_a_step(name, tmp_path, small_data):
    done = run(
        "train.py",
        f"experiment={name}",
        "debug=step",
        "trainer.accelerator=cpu",
        f"hydra.run.dir={tmp_path}/run",
        *SMALLER.get(name, []),
        LEARNREG_DATA=str(small_data),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].startswith(f"Run folder: {tmp_path}/run")
    for file in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics/metrics.csv"):
        assert (tmp_path / "run" / file).exists(), file
    assert list((tmp_path / "run" / "figures").glob("*.png"))


TEMPLATE = ["network=learned_template", "objective.supervision=null", "callbacks.best.monitor=val/loss"]


@pytest.mark.parametrize("network", [[], [*TEMPLATE, "callbacks.best.mode=min"]], ids=["own", "template"])
@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path, small_data, network):
    """One folder, one table of metrics and one report, as many steps as each process has taken, and equal weights."""
    done = run(
        "train.py",
        "experiment=hippocampus",
        "debug=step",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.limit_train_batches=3",
        "report_pairs=1",
        "refine=0",
        "+callbacks.weights._target_=tests.training.weights.SaveWeights",
        f"+callbacks.weights.folder={tmp_path}",
        f"hydra.run.dir={tmp_path}/run",
        *network,
        LEARNREG_DATA=str(small_data),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank_{k}.pt", weights_only=True) for k in range(2))
    assert not set(first["seen"]) & set(second["seen"])
    different = [name for name, values in first["weights"].items() if not torch.equal(values, second["weights"][name])]
    assert not different
    assert done.stdout.count("| one-shot") == 1
    assert len(list(tmp_path.rglob("metrics.csv"))) == 1
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert network or load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").network.segment


@pytest.mark.slow
def test_report_after_training_from_another_folder_with_own_configs(tmp_path):
    """``--config-dir``, options of the trainer, and the table at the end."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - quickstart\n  - override /network: unet\n"
        "network: {channels: [4, 8]}\ndata: {subjects: 2, validation_subjects: 2, spacing: 8.0}\n"
        "start: null\ncompare: [universal]\nreport_pairs: 1\nrefine: 2\n"
    )
    done = run(
        str(ROOT / "train.py"),
        "--config-dir",
        str(tmp_path),
        "experiment=mine",
        "method=affine",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "trainer.max_time=00:00:01:00",
        f"hydra.run.dir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in report["summary"]] == ["start", "classical", "universal", "one-shot", "refined"]
    assert "| classical" in done.stdout
    assert len(list((tmp_path / "run" / "figures").glob("validation_pair_1_*.png"))) == 4


TINY = ["data.spacing=8", "data.subjects=2", "data.validation_subjects=2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=quikstart"], "quickstart"),
        (["experiment=quickstart", "trainer.max_epoch=3"], "did you mean 'max_epochs'"),
        (["experiment=quickstart", "sed=3"], "did you mean 'seed'"),
        (["experiment=quickstart", "network.chanels=[4]"], "did you mean 'channels'"),
        (["experiment=hippocampus"], "set LEARNREG_DATA"),
        ([], "Set data.path=..., or choose an experiment: experiment=abdomen_mrct, brain"),
        (["data.path=/nowhere", "data.train=[0,2]", "data.validation=[2,4]"], "No such data set: /nowhere"),
        (["experiment=quickstart", "resume=/nowhere.ckpt"], "No such checkpoint"),
        (["experiment=quickstart", "optimizer.learning_rate=0.1"], "'optimizer.learning_rate'; choose from lr"),
        (["experiment=quickstart", "optimzer.lr=0.1"], "did you mean 'optimizer'"),
        (["experiment=quickstart", "network=unet", *TINY], "or start=null to begin with random weights"),
        (["experiment=quickstart", "compare=[universal-2d]", *TINY], "compare=universal-2d is a model for 2-D images"),
        (["experiment=quickstart", "compare=[nowhere]", *TINY], "No such checkpoint: nowhere"),
        (["-m", "experiment=quickstart", "network=unet,unnet"], "network/unnet"),
        (
            ["experiment=quickstart", "objective/penalties=bending", "+objective.penalties.diffusion.weight=1"],
            "without",
        ),
    ],
)
@pytest.mark.slow
def test_bad_command_lines_are_one_line(arguments, message, tmp_path):
    done = run("train.py", *arguments, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]


@pytest.mark.slow
def test_a_bug_in_a_training_keeps_its_traceback(tmp_path):
    """On the screen and in the run folder."""
    (tmp_path / "faulty.py").write_text(
        "from learnreg.networks import UNet\n\n\nclass Faulty(UNet):\n"
        "    def forward(self, fixed, moving):\n        return 1 / 0\n"
    )
    done = run(
        "train.py",
        "experiment=quickstart",
        "debug=step",
        "start=null",
        "network=unet",
        "network._target_=faulty.Faulty",
        f"hydra.run.dir={tmp_path}/run",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode == 1
    for text in (done.stderr, (tmp_path / "run" / "error.log").read_text(encoding="utf-8")):
        assert "ZeroDivisionError" in text
        assert "return 1 / 0" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeed: 3", "did you mean 'seed'"),
        ("network: {chanels: [4]}", "did you mean 'channels'"),
        ("trainer: {max_epoch: 3}", "did you mean 'max_epochs'"),
        ("objective: {similarity: {term: {mse: 5}}}", "did you mean 'terms'"),
    ],
)
@pytest.mark.slow
def test_misspelt_keys_of_an_experiment_file_are_told(text, message, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\ndefaults:\n  - quickstart\n{text}\n")
    done = run("train.py", "--config-dir", str(tmp_path), "experiment=mine", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode != 0
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1, done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.channels=abc", "network.channels must be Sequence[int], got 'abc'"),
        ("network.steps=2.5", "network.steps must be int, got 2.5"),
        ("data.smoothness=much", "data.smoothness must be float, got 'much'"),
        ("+objective.penalties.diffusion.acts_on=all", "acts_on must be Literal['field', 'displacement'], got 'all'"),
    ],
)
def test_values_of_the_wrong_type_are_told(override, message):
    register_schema()
    config = compose_config(config_dir(), "train", ["experiment=quickstart", override])
    plain = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("network", "data", "objective")}
    with pytest.raises(ValueError, match=re.escape(message)):
        check_targets(plain)


def test_every_argument_of_the_trainer_can_be_set():
    register_schema()
    config = compose_config(config_dir(), "train", ["experiment=quickstart", "trainer.detect_anomaly=true"])
    assert config.trainer.detect_anomaly is True
    settings = {**OmegaConf.to_container(config.trainer, resolve=False), "default_root_dir": ".", "precision": None}
    check_targets(settings)
    assert set(inspect.signature(pl.Trainer).parameters) > set(settings) - {"_target_"}


def test_a_method_file_starts_from_a_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults:\n  - /method/brain@_here_\n  - _self_\nstages:\n  deformation: {iterations: [1, 2, 3, 4]}\n  center: null\n"
    )
    mine, brain = load_method(str(file)), load_method("brain")
    assert list(brain.stages) == ["center", "rotation", "affine", "deformation"]
    assert list(mine.stages) == ["rotation", "affine", "deformation"]
    assert mine.stages["deformation"].limits == (1, 2, 3, 4)
    assert mine.stages["deformation"].factors == brain.stages["deformation"].factors
    file.write_text("defaults: [nothing]\n")
    with pytest.raises(ValueError, match=r"mine\.yaml is not a valid method file"):
        load_method(str(file))


@pytest.mark.slow
def test_a_preset_works_inside_of_another_hydra_application(tmp_path):
    (tmp_path / "app.py").write_text(
        "import hydra\nimport learnreg\nfrom hydra.core.global_hydra import GlobalHydra\n"
        "from hydra.core.hydra_config import HydraConfig\n\n\n"
        "@hydra.main(version_base=None, config_path=None)\ndef main(config):\n"
        "    before = GlobalHydra.instance().hydra\n"
        "    print(list(learnreg.load_method('affine').stages))\n"
        "    assert GlobalHydra.instance().hydra is before is not None\n"
        "    assert HydraConfig.get().job.name == 'app'\n\n\nmain()\n"
    )
    done = run(str(tmp_path / "app.py"), f"hydra.run.dir={tmp_path}/run", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "['center', 'rotation', 'affine']" in done.stdout


def test_check_targets():
    good = {"_target_": "learnreg.similarity.LNCC", "window": 5}
    check_targets({"a": [good]})
    with pytest.raises(ValueError, match=r"a\[0\].windw'; did you mean 'window'"):
        check_targets({"a": [{"_target_": "learnreg.similarity.LNCC", "windw": 5}]})
    with pytest.raises(ValueError, match="cannot be imported"):
        check_targets({"_target_": "learnreg.similarity.Nothing"})
    assert "choose from" in unknown_key("x", "x", ["alpha", "beta"])


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16-mixed"),
        ({"avx2": True}, "32-true"),
    ],
)
def test_processors_that_multiply_bfloat16_train_in_it(capabilities, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision("cpu") == precision
    assert fastest_precision("mps") == "32-true"


def test_presets_exist():
    assert {"affine", "deformable", "fast"} <= set(method_names())


@pytest.mark.slow
class TestDataOfATraining:
    def folder(self, tmp_path, *, unlabeled=()):
        grid = Grid.regular((16, 16, 16))
        for k in range(6):
            image = blob_image(grid, (k - 2.5, 0.0, 0.0))
            write_image(image.data[0], grid, tmp_path / "images" / f"s.{k}.nii.gz")
            if k not in unlabeled:
                write_image(image.labels[0].to(torch.uint8), grid, tmp_path / "labels" / f"s.{k}.nii.gz")
        return tmp_path

    def train(self, folder, *overrides):
        blocks = "data.train=[0,4]", "data.validation=[4,6]", "data.space.shape=[16,16,16]"
        small = "network=unet", "network.channels=[4,8]", "trainer.max_steps=2", "trainer.accelerator=cpu"
        place = f"hydra.run.dir={folder}/run"
        return run("train.py", f"data.path={folder}", *blocks, *small, place, *overrides)

    def test_missing_labels_are_told_before_it_begins(self, tmp_path):
        folder = self.folder(tmp_path, unlabeled=(2,))
        for spelling in ("objective/supervision=dice", "supervision@objective.supervision=dice"):
            done = self.train(folder, spelling)
            assert "s.2.nii.gz has no labels, which this training needs" in done.stderr
            assert "Training" not in done.stdout
        assert self.train(folder).returncode == 0  # images alone need none

    def test_a_validation_block_without_a_pair_is_told_before_it_begins(self, tmp_path):
        done = self.train(self.folder(tmp_path), "data.validation=[4,5]")
        assert "data.validation=[4, 5] holds one image, and a pair needs two" in done.stderr
        assert "Training" not in done.stdout

    def test_a_used_run_folder_is_kept(self, tmp_path):
        folder = self.folder(tmp_path)
        assert self.train(folder).returncode == 0
        before = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
        done = self.train(folder)
        assert "already holds a run; continue it with resume=auto" in done.stderr
        assert (folder / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
        resumed = self.train(folder, f"resume={folder}/run/checkpoints/last.ckpt", "trainer.max_steps=3")
        assert resumed.returncode == 0, resumed.stderr

    def test_landmarks_of_a_csv_supervise(self, tmp_path):
        folder = self.folder(tmp_path)
        rows = ["image,landmarks"]
        for k in range(6):
            points = [f"{name},{x + k - 2.5},0,{x}" for name, x in (("b", 3.0), ("a", -3.0))]
            (folder / f"{k}.csv").write_text("name,x,y,z\n" + "\n".join(points if k % 2 else points[::-1]) + "\n")
            rows.append(f"images/s.{k}.nii.gz,{k}.csv")
        (folder / "all.csv").write_text("\n".join(rows) + "\n")
        done = self.train(folder, "objective/supervision=landmarks", f"data.path={folder}/all.csv")
        assert done.returncode == 0, done.stderr
        first, second = (subject.read().landmarks for subject in read_subjects(folder / "all.csv")[:2])
        assert torch.allclose(second - first, torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.slow
def test_a_config_folder_may_follow_an_equals_sign(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - quickstart\nseeed: 3\n")
    done = run("train.py", f"--config-dir={tmp_path}", "experiment=mine", f"hydra.run.dir={tmp_path}/run")
    assert "did you mean 'seed'" in done.stderr


@pytest.mark.slow
def test_a_template_is_trained_with_gradient_features(tmp_path, small_data):
    """The gradient of the gradient's length is 0, not NaN, where a blank template is flat."""
    done = run(
        "train.py",
        "experiment=hippocampus_images",
        "network=learned_template",
        "data.space.shape=[32,32,32]",
        "trainer.max_steps=4",
        "trainer.limit_train_batches=4",
        "trainer.limit_val_batches=1",
        "report_pairs=0",
        f"hydra.run.dir={tmp_path}/run",
        LEARNREG_DATA=str(small_data),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")  # refuses weights that are not finite
