"""A training is the same on any number of processes, and after any kill."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer

from learnreg.consistency import InverseConsistency
from learnreg.data import RandomTransform
from learnreg.data.datasets import Augment, OrderedPairs, PairDataset
from learnreg.data.formats import Subject
from learnreg.data.streams import shuffled, training_loader, validation_loader
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.memory import _resident
from learnreg.networks import (
    AffineNetwork,
    Cascade,
    Conditioned,
    KeypointNetwork,
    LaplacianPyramid,
    LearnedTemplate,
    Oriented,
    Pyramid,
    UNet,
)
from learnreg.objective import Objective, Penalty
from learnreg.optimization import CenterOfMass
from learnreg.regularization import Diffusion
from learnreg.similarity import LNCC, MSE, MutualInformation
from learnreg.supervision import LabelOverlap, LandmarkDistance
from learnreg.terms import Weighted
from learnreg.training import AtomicCheckpointIO, Distillation, LastCheckpoint, MetricsTable, RegistrationModule
from tests.conftest import blob_image
from tests.processes import begun, run, statuses

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*ended before the epoch ended"),
]
GRID = Grid.regular((16, 16), 1.5)
NETWORKS = {
    "unet": lambda: UNet(2, (4, 8)),
    "pyramid": lambda: Pyramid(2, (4, 8), steps=3),
    "segmenting pyramid": lambda: Pyramid(2, (4, 8), steps=3, segments=[1, 2]),
    "laplacian": lambda: LaplacianPyramid(2, (4, 4), blocks=1),
    "affine": lambda: AffineNetwork(2, (4, 8)),
    "keypoints": lambda: KeypointNetwork(2, (4, 8), keypoints=6),
    "cascade": lambda: Cascade([AffineNetwork(2, (4, 8)), UNet(2, (4, 8))]),
    "template": lambda: LearnedTemplate(UNet(2, (4, 8)), (16, 16)),
    "oriented": lambda: Oriented(UNet(2, (4, 8)), channels=(4,), samples=8),
    "conditioned": lambda: Conditioned(UNet(2, (4, 8)), penalty="diffusion", between=(0.01, 1.0)),
}
SUPERVISIONS = {
    "labels": lambda: LabelOverlap([1, 2]),
    "landmarks": LandmarkDistance,
    "distillation": lambda: Distillation({"center": CenterOfMass()}),
}
SIMILARITIES = {"lncc": lambda: LNCC(5), "mutual information": lambda: MutualInformation(bins=16)}


class Blobs(pl.LightningDataModule):
    """Five blobs with labels and landmarks; three validation pairs, of which the last one may have no labels."""

    def __init__(self, batch_size=1, *, workers=0, labeled=False):
        super().__init__()
        self.batch_size, self.workers, self.labeled = batch_size, workers, labeled
        images = [blob_image(GRID, (float(k), -0.5 * k), (6.0 + 0.4 * k, 5.0)) for k in range(-2, 3)]
        points = torch.tensor([[[0.0, 0.0], [2.0, 3.0], [-4.0, 1.0]]])
        self.images = [replace(image, landmarks=points + k) for k, image in enumerate(images)]

    def train_dataloader(self):
        pairs = OrderedPairs(self.images, lambda image: image, augment=Augment(RandomTransform(noise=0.02)))
        return training_loader(pairs, self.trainer, seed=3, batch_size=self.batch_size, num_workers=self.workers)

    def val_dataloader(self):
        a, b, c, *_ = self.images
        last = c if self.labeled else replace(c, labels=None)
        return validation_loader(PairDataset([(a, b), (b, c), (last, a)], lambda image: image))


class Recorder(pl.Callback):
    """Writes what a process has at the end: weights, and the logged values of each validation."""

    def __init__(self, folder):
        self.folder, self.history = folder, []

    def on_validation_end(self, trainer, pl_module):
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.history.append(values)

    def on_train_end(self, trainer, pl_module):
        weights = {k: v.clone() for k, v in pl_module.state_dict().items()}
        torch.save((weights, self.history), self.folder / f"rank{trainer.global_rank}.pt")


SGD = partial(torch.optim.SGD, lr=0.05)


def module(network="unet", supervision=None, similarity="mse", optimizer=SGD, **kwargs):
    torch.manual_seed(0)
    terms = {} if supervision is None else {"known": Weighted(SUPERVISIONS[supervision](), 0.1)}
    term = MSE() if similarity == "mse" else SIMILARITIES[similarity]()
    objective = Objective(term, {"diffusion": Penalty(Diffusion(), 0.01)}, terms)
    return RegistrationModule(NETWORKS[network](), objective, optimizer, **kwargs)


def fit(folder, trained, data, *, processes=1, steps=20, callbacks=(), **kwargs):
    """Train; return for each process its weights and validations."""
    folder.mkdir(exist_ok=True)
    action = partial(train, folder, trained, data, processes, steps, callbacks, **kwargs)
    action() if processes == 1 else run(action, processes=processes)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def train(folder, trained, data, processes, steps, callbacks, **kwargs):
    """Train in this process, which is one of several; ``trained`` is a module, or makes one."""
    trained = trained if isinstance(trained, pl.LightningModule) else trained()
    arguments = {"max_steps": steps, "limit_train_batches": 10, "num_sanity_val_steps": 0, "logger": False} | kwargs
    pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, Recorder(folder)],
        enable_checkpointing=any(isinstance(c, (ModelCheckpoint, LastCheckpoint)) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=processes,
        **({"strategy": "ddp" if processes > 1 else "auto"} | arguments),
    ).fit(trained, datamodule=data)


def check_equal(tmp_path, make, *, steps=20):
    """Two processes have bit-equal weights, and those of one process with batches of twice the size."""
    labeled = "labels" in make().needs
    (one, validations), *_ = fit(tmp_path / "one", make(), Blobs(2, labeled=labeled), steps=steps)
    first, second = fit(tmp_path / "two", make, Blobs(1, labeled=labeled), processes=2, steps=steps)
    start = make().state_dict()
    assert any(not torch.equal(one[key], start[key]) for key in one)
    for key, value in first[0].items():
        assert torch.equal(value, second[0][key]), key
        torch.testing.assert_close(value, one[key], rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert first[1] == second[1]
    for alone, together in zip(validations, first[1], strict=True):
        assert alone == pytest.approx(together, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_two_processes_train_as_one_with_twice_the_batch(network, tmp_path):
    rate = 1e-3 if network == "keypoints" else 0.05  # its first steps are so large that they amplify rounding
    optimizer = partial(torch.optim.SGD, lr=rate)
    check_equal(tmp_path, lambda: module(network, "labels" if "segmenting" in network else None, optimizer=optimizer))


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.slow
def test_torchrun_trains_as_one_process_with_twice_the_batch(agents, tmp_path):
    """One agent with two processes, and two agents with one each, as on two nodes."""
    (one, validations), *_ = fit(tmp_path / "one", module(), Blobs(2))
    (tmp_path / "two").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    launch = ["--nnodes", str(agents), "--nproc-per-node", str(2 // agents), "--rdzv-backend", "c10d"]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "--rdzv-endpoint", meeting]
    command += ["-m", "tests.training.rank", str(tmp_path / "two"), str(2 // agents), str(agents)]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True) for _ in range(agents)]
    errors = [agent.communicate(timeout=300)[1] for agent in running]
    assert [agent.returncode for agent in running] == [0] * agents, errors[0][-3000:]
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in range(2))
    assert first[1] == second[1]
    assert first[1][-1]["val/loss"] == pytest.approx(validations[-1]["val/loss"], rel=1e-4)
    for key, value in first[0].items():
        assert torch.equal(value, second[0][key]), key
        torch.testing.assert_close(value, one[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_two_processes_with_supervision(supervision, tmp_path):
    check_equal(tmp_path, lambda: module(supervision=supervision))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_two_processes_with_similarity(similarity, tmp_path):
    check_equal(tmp_path, lambda: module(similarity=similarity))


def test_two_processes_with_consistency(tmp_path):
    check_equal(tmp_path, lambda: module(consistency=Weighted(InverseConsistency(), 0.1), symmetric=True))


def test_two_processes_go_through_the_same_images(tmp_path):
    """The next pair of the batch may be that of the other process."""
    check_equal(tmp_path, lambda: module(consistency=Weighted(InverseConsistency(through=1), 0.1)))


def test_processes_are_equal_when_time_decides(tmp_path):
    """The learning rate follows the clock of the first process."""

    def late(trained):
        return [Timer(duration={"seconds": 2}), _Late()]

    trained = module(optimizer=partial(torch.optim.AdamW, lr=1e-2), warmup=0.5)
    first, second = fit(tmp_path, trained, Blobs(1), processes=2, steps=100_000, callbacks=late(trained))
    for key, value in first[0].items():
        assert torch.equal(value, second[0][key]), key


class _Late(pl.Callback):
    """Lets the clock of the second process be half a second behind."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            next(c for c in trainer.callbacks if isinstance(c, Timer))._offset = 0.5


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_the_same_pairs(workers, tmp_path):
    (one, _), *_ = fit(tmp_path / "none", module(), Blobs(2))
    (many, _), *_ = fit(tmp_path / "some", module(), Blobs(2, workers=workers))
    assert all(torch.equal(one[key], many[key]) for key in one)


def test_a_pass_visits_each_pair_once():
    for count in (1, 2, 5, 20, 1000):
        assert sorted(shuffled(k, count, "seed", 0) for k in range(count)) == list(range(count))
    first, second = ([shuffled(k, 1000, "seed", turn) for k in range(1000)] for turn in (0, 1))
    assert first != second
    assert abs(torch.corrcoef(torch.tensor([first, list(range(1000))], dtype=torch.double))[0, 1]) < 0.1
    assert shuffled(0, 10_000 * 9_999, 0) < 10_000 * 9_999  # no list of 10^8 numbers


class _StopAt(pl.Callback):
    """Ends a process at a step, as a kill would, but after the checkpoint of that step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os._exit(0)


def resumable(folder, minutes=1e-6, *, steps=30, stop=None, extra=(), changes=None, **kwargs):
    """A training with validations after 7, 14, ... steps, whose state is kept in a folder."""
    callbacks = [
        ModelCheckpoint(
            folder, filename="best", monitor="val/loss", save_on_train_epoch_end=False, enable_version_counter=False
        ),
        LastCheckpoint(folder, minutes=minutes),
        *(make() for make in extra),
    ]
    last = folder / "last.ckpt"
    settings = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "network": "conditioned"} | (changes or {})
    trained = module(**settings)
    kwargs = {"log_every_n_steps": 3} | kwargs
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_train_batches=7,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, *([] if stop is None else [_StopAt(stop)])],
        logger=MetricsTable(folder),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(trained, datamodule=Blobs(2), ckpt_path=last if last.exists() else None, weights_only=True)
    state = {"weights": trained.state_dict(), "best": callbacks[0].best_model_score, "steps": trainer.global_step}
    torch.save(state, folder / "result.pt")


def check_kills(tmp_path, make, *, kills=6):
    """A training that is killed many times ends with the weights and the table of one that is not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run(int)  # the server is there, with all imports
    before = time.monotonic()
    run(partial(make, whole))
    duration = time.monotonic() - before
    generator = torch.Generator().manual_seed(0)
    done = 0
    while done < kills:
        share = 0.2 + 0.5 * float(torch.rand((), generator=generator))
        child = begun(partial(make, killed))
        time.sleep(share * duration)
        child[0].kill()
        if statuses(child) == [0]:
            for file in killed.iterdir():  # it ended before it was killed: begin anew
                file.unlink()
            continue
        done += 1
        if (killed / "last.ckpt").exists():
            torch.load(killed / "last.ckpt", weights_only=True)
    run(partial(make, killed))
    one, other = (torch.load(folder / "result.pt", weights_only=True) for folder in (whole, killed))
    for key, value in one["weights"].items():
        assert torch.equal(value, other["weights"][key]), key
    assert (one["best"], one["steps"]) == (other["best"], other["steps"])
    assert (killed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert not list(killed.glob(".part-*"))


def test_a_killed_training_goes_on_to_the_same_end(tmp_path):
    check_kills(tmp_path, resumable, kills=int(os.environ.get("LEARNREG_KILLS", "6")))


class _Resident(pl.Callback):
    """Writes the resident memory of the process after some steps, MB."""

    def __init__(self, file, steps):
        self.file, self.steps, self.found = file, steps, []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step in self.steps:
            gc.collect()
            self.found.append(_resident("VmRSS") / 1e6)
            self.file.write_text(json.dumps(self.found))


@pytest.mark.slow
@pytest.mark.skipif(_resident("VmRSS") is None, reason="the system does not tell")
def test_memory_is_flat(tmp_path):
    """Over 1,000 steps, with all that a training keeps beside its weights."""
    resident = _Resident(tmp_path / "memory.json", (200, 600, 1000))
    make = partial(resumable, tmp_path, minutes=0.05, steps=1000, extra=(lambda: resident,))
    run(partial(make, changes={"optimizer": SGD}))
    first, _, last = json.loads(resident.file.read_text())
    assert last < first + 5


def test_a_divergence_names_the_term_and_the_pair(tmp_path):
    class Files(Blobs):
        """Pairs whose subjects have files; the third image is not a number."""

        def train_dataloader(self):
            subjects = [Subject(tmp_path / f"s{k}.nii.gz") for k in range(3)]
            images = dict(zip(subjects, self.images, strict=False))
            images[subjects[2]] = replace(images[subjects[2]], data=torch.full((1, 1, 16, 16), torch.nan))
            return training_loader(OrderedPairs(subjects, images.get), self.trainer, seed=0, batch_size=1)

    with pytest.raises(InputError, match=r"no finite similarity.* for .*s2.nii.gz"):
        fit(tmp_path, module(), Files())


def test_the_parts_of_a_step_add_up_when_gradients_are_accumulated(tmp_path):
    """Saved between two batches of one step, a training would lose the first one's gradients."""
    make = partial(resumable, accumulate_grad_batches=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    run(partial(make, whole))
    run(partial(make, stopped, stop=5))
    assert torch.load(stopped / "last.ckpt", weights_only=True)["global_step"] == 5
    run(partial(make, stopped))
    one, other = (torch.load(folder / "result.pt", weights_only=True)["weights"] for folder in (whole, stopped))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminated_training_is_saved(processes, tmp_path):
    """SLURM sends SIGTERM to all processes before it ends a job."""
    strategy = {"strategy": "ddp", "devices": 2} if processes == 2 else {}
    ranks = begun(partial(resumable, tmp_path, minutes=1e6, steps=10**6, **strategy), processes=processes)
    while not (tmp_path / "last.ckpt").exists():
        assert all(rank.is_alive() for rank in ranks), "it ended early"
        time.sleep(0.1)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    time.sleep(0.5)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGTERM)
    assert statuses(ranks) == [143] * processes
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] > before
