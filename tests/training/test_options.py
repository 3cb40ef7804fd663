"""The options of docs/training.md, each on a real training of tiny images."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from torch._dynamo.utils import counters

from learnreg.apps.wiring import begin_with
from learnreg.errors import InputError
from learnreg.networks import UNet, as_network
from learnreg.networks.checkpoint import load_checkpoint, release
from learnreg.training import (
    AtomicCheckpointIO,
    Constant,
    Cosine,
    LastCheckpoint,
    Polynomial,
    RegistrationModule,
    Steps,
)
from learnreg.training.blocks import blocks_of, compile_blocks, recompute_blocks
from tests.apps.test_train import write
from tests.processes import run
from tests.training.test_scale import (
    NETWORKS,
    SGD,
    Blobs,
    check_equal,
    check_kills,
    fit,
    module,
    pytestmark,  # noqa: F401
    resumable,
)

ADAM = partial(torch.optim.AdamW, lr=1e-2)


def ema():
    return EMAWeightAveraging(decay=0.8, use_buffers=False)


def stopping(patience=2):
    return EarlyStopping("val/loss", patience=patience, min_delta=0.5, check_on_train_epoch_end=False)


class Own(pl.Callback):
    """An average of one's own, and the weights that are validated."""

    def __init__(self):
        self.average, self.validated = None, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = [p.detach().double().clone() for p in pl_module.network.parameters()]
        old = self.average or now
        self.average = [0.8 * a + 0.2 * b for a, b in zip(old, now, strict=True)]

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.validated = [p.detach().clone() for p in pl_module.network.parameters()]


class TestAverage:
    def test_the_average_is_validated_and_saved(self, tmp_path):
        own, trained = Own(), module(optimizer=ADAM)
        last = LastCheckpoint(tmp_path)
        fit(tmp_path, trained, Blobs(1), callbacks=[ema(), own, last])
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        saved = [content["state_dict"][f"network.{name}"] for name, _ in trained.network.named_parameters()]
        for found in (own.validated, list(trained.network.parameters()), saved):
            for value, wanted in zip(found, own.average, strict=True):
                torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)

    def test_it_goes_on_after_kills_with_its_average_and_its_count(self, tmp_path):
        check_kills(tmp_path, partial(resumable, extra=(ema, partial(stopping, 4)), steps=100), kills=3)
        assert (
            torch.load(tmp_path / "whole" / "result.pt", weights_only=True)["steps"] == 5 * 7
        )  # the first is the best

    def test_two_processes_have_the_average_of_one(self, tmp_path):
        one, *_ = fit(tmp_path / "one", module(), Blobs(2), callbacks=[ema()])
        first, second = fit(tmp_path / "two", module(), Blobs(1), processes=2, callbacks=[ema()])
        for key, value in first[0].items():
            assert torch.equal(value, second[0][key]), key
            torch.testing.assert_close(value, one[0][key], rtol=1e-6, atol=1e-6)

    def test_the_levels_of_now_are_saved_with_the_average(self, tmp_path):
        class Coarse(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                pl_module.network.levels = 1

        trained = module("laplacian")
        fit(tmp_path, trained, Blobs(1), callbacks=[ema(), Coarse(), LastCheckpoint(tmp_path)])
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert int(content["state_dict"]["network._extra_state"]) == 1

    def test_a_checkpoint_with_an_average_needs_the_option(self, tmp_path):
        run(partial(resumable, tmp_path, extra=(ema,), steps=10))
        with pytest.raises(InputError, match=r"\+callbacks/average=ema"):
            resumable(tmp_path, steps=12)


class TestStop:
    def test_all_processes_stop_at_once(self, tmp_path):
        """Two validations after the first one are not better by 0.5; steps of one process are steps of all."""
        found = fit(tmp_path, module(), Blobs(1), processes=2, steps=100, callbacks=[stopping()])
        assert [len(history) for _, history in found] == [3, 3]
        assert all(torch.equal(value, found[1][0][key]) for key, value in found[0][0].items())

    def test_what_has_stopped_stays_stopped(self, tmp_path):
        make = partial(resumable, tmp_path, extra=(stopping,), steps=100)
        run(make)
        before = torch.load(tmp_path / "result.pt", weights_only=True)
        run(make)
        after = torch.load(tmp_path / "result.pt", weights_only=True)
        assert (before["steps"], after["steps"]) == (21, 21)
        assert all(torch.equal(value, after["weights"][key]) for key, value in before["weights"].items())


class Rates(pl.Callback):
    """The learning rate of each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


SCHEDULES = {
    "cosine": (lambda: Cosine(0.1), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, 0.005)),
    "polynomial": (lambda: Polynomial(0.9), lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 20, 0.9)),
    "constant": (Constant, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0, 1)),
    "step": (lambda: Steps([0.5, 0.75], 0.3), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], 0.3)),
}


class TestSchedule:
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_the_rates_are_those_of_pytorch(self, name, tmp_path):
        ours, theirs = SCHEDULES[name]
        rates = Rates()
        fit(tmp_path, module(schedule=ours(), warmup=0), Blobs(1), callbacks=[rates])
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
        reference, wanted = theirs(optimizer), []
        for _ in range(20):
            wanted.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            reference.step()
        assert rates.found == pytest.approx(wanted, rel=1e-6)

    def test_a_rate_that_rises_first(self, tmp_path):
        rates = Rates()
        fit(tmp_path, module(schedule=Constant(), warmup=0.25), Blobs(1), callbacks=[rates])
        assert rates.found == pytest.approx([0.05 * max(min(k / 5, 1), 1e-3) for k in range(20)])

    def test_a_training_without_a_budget_does_not_stay_in_the_warm_up(self, tmp_path):
        """A callback ends it, so its shares are unknown."""

        class End(Rates):
            def on_train_batch_end(self, trainer, *_):
                trainer.should_stop = len(self.found) == 8

        rates = End()
        trained = module(schedule=Constant(), warmup=0.25)
        fit(tmp_path, trained, Blobs(1), steps=-1, callbacks=[rates], max_epochs=-1)
        assert rates.found == pytest.approx([0.05] * 8)

    def test_time_decides(self, tmp_path, monkeypatch):
        """Without a number of steps, a step of the rate comes at half of the time, by a clock that training steps wind."""

        class Clock(Rates):
            def monotonic(self):
                return len(self.found) / 10

        clock = Clock()
        monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", clock)
        trained = module(schedule=Steps([0.5], 0.1), warmup=0)
        fit(tmp_path, trained, Blobs(1), steps=-1, max_time={"seconds": 2}, callbacks=[clock], max_epochs=-1)
        assert clock.found == pytest.approx([0.05] * 10 + [0.005] * 10, abs=1e-9)

    @pytest.mark.parametrize("name", ["polynomial", "step"])
    def test_it_goes_on_after_kills(self, name, tmp_path):
        changes = {"schedule": SCHEDULES[name][0]()}
        check_kills(tmp_path, partial(resumable, changes=changes), kills=2)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Cosine(2.0), "Cosine.end is a factor"),
            (lambda: Polynomial(0.0), "Polynomial.power must be positive"),
            (lambda: Steps([0.7, 0.5]), "rising from 0 to 1"),
            (lambda: module(warmup=1.0), "warmup is a share"),
        ],
    )
    def test_bad_values_are_told(self, make, message):
        with pytest.raises(InputError, match=message):
            make()


IMAGE = Blobs().images[0], Blobs().images[1]


def gradients(trained, precision=torch.float32):
    """The loss of a step and its gradient, as one vector."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = trained.training_step(IMAGE, 0)
    weights = [p for p in trained.network.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return loss, torch.cat([loss.detach()[None], *(g.flatten() for g in found if g is not None)])


def norm(values):
    return float(values.norm())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # of Dynamo
class TestCompile:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_the_gradients_are_the_same(self, name):
        torch.compiler.reset()
        segments = "labels" if "segmenting" in name else None
        plain, compiled = module(name, segments), module(name, segments)
        names = list(compiled.state_dict())
        compile_blocks(compiled.network, backend="aot_eager")
        assert list(compiled.state_dict()) == names
        before = counters["stats"]["unique_graphs"]
        (_, wanted), (_, found) = gradients(plain), gradients(compiled)
        assert counters["stats"]["unique_graphs"] - before >= len(blocks_of(compiled.network)) / 2  # equal ones share
        assert norm(found - wanted) < 1e-5 * norm(wanted)

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_with_the_default_compiler(self, precision):
        torch.compiler.reset()
        plain, compiled = module(), module()
        compile_blocks(compiled.network)
        (_, wanted), (_, found) = gradients(plain, precision), gradients(compiled, precision)
        assert norm(found - wanted) < (1e-5 if precision == torch.float32 else 0.02) * norm(wanted)

    def test_an_average_copies_the_blocks(self):
        trained = module()
        compile_blocks(trained.network, backend="eager")
        copied = copy.deepcopy(trained)
        assert all(block.forward.__self__ is block for block in blocks_of(copied.network))

    def test_it_is_resumed_with_and_without(self, tmp_path):
        def part(steps, compiled):
            trained, last = module(), tmp_path / "last.ckpt"
            if compiled:
                compile_blocks(trained.network, backend="aot_eager")
            pl.Trainer(
                accelerator="cpu",
                max_steps=steps,
                logger=False,
                limit_val_batches=0,
                callbacks=[LastCheckpoint(tmp_path)],
                plugins=[AtomicCheckpointIO()],
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(trained, datamodule=Blobs(1), ckpt_path=last if last.exists() else None, weights_only=True)
            return trained.state_dict()

        torch.compiler.reset()
        for steps, compiled in ((3, True), (6, False), (9, True)):
            found = part(steps, compiled)
        (tmp_path / "last.ckpt").unlink()
        for steps in (3, 6, 9):
            wanted = part(steps, False)
        assert all(torch.allclose(found[key], value, rtol=1e-5, atol=1e-6) for key, value in wanted.items())

    def test_a_network_without_blocks_is_told(self):
        class Single(torch.nn.Module):
            ndim, in_channels = 2, 1

            def forward(self, fixed, moving):
                return fixed

        for change in (compile_blocks, recompute_blocks):
            with pytest.raises(InputError, match="PairNetwork has no blocks"):
                change(as_network(Single()))

    def test_a_backend_that_is_none(self):
        with pytest.raises(InputError, match="no backend 'gcc'"):
            compile_blocks(module().network, backend="gcc")


@pytest.mark.filterwarnings("ignore:.*self.log")
class TestRecompute:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
    def test_the_gradients_are_the_same(self, name, precision):
        segments = "labels" if "segmenting" in name else None
        plain, again = module(name, segments), module(name, segments)
        recompute_blocks(again.network)
        (_, wanted), (_, found) = gradients(plain, precision), gradients(again, precision)
        assert norm(found - wanted) <= 1e-6 * norm(wanted)

    def test_less_is_kept(self):
        def kept(trained):
            sizes = {}

            def pack(values):
                sizes[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
                return values

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
                trained.network(*IMAGE)
            return sum(sizes.values())

        plain, again = module(), module()
        recompute_blocks(again.network)
        assert kept(again) < 0.8 * kept(plain)

    def test_two_processes(self, tmp_path):
        def make():
            trained = module()
            recompute_blocks(trained.network)
            return trained

        check_equal(tmp_path, make)


class TestAccumulation:
    @pytest.mark.parametrize("processes", [1, 2])
    def test_two_batches_are_one_of_twice_the_size(self, processes, tmp_path):
        (wanted, _), *_ = fit(tmp_path / "one", module(), Blobs(2 * processes), steps=10)
        found = fit(tmp_path / "two", module(), Blobs(1), processes=processes, steps=10, accumulate_grad_batches=2)
        for weights, _ in found:
            for key, value in wanted.items():
                torch.testing.assert_close(weights[key], value, rtol=1e-6, atol=1e-6)

    def test_it_goes_on_after_kills(self, tmp_path):
        """``last.ckpt`` is written between two steps only; an epoch of 7 batches ends with a step of one batch."""
        check_kills(tmp_path, partial(resumable, accumulate_grad_batches=3), kills=3)


class TestPrecision:
    def test_half_precision_trains_alike(self, tmp_path):
        """Weights, coordinates and similarities stay in float32; the loss falls as far.

        After few steps one of the two is ahead by chance: on one CPU bfloat16 was behind after 40, and ahead after 80.
        """

        def train(folder, precision):
            types = set()

            class Seen(pl.Callback):
                def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                    types.add(outputs["loss"].dtype)

                def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
                    types.add(pl_module(*batch).displacement(batch[0].grid).dtype)

            trained = module(similarity="lncc", optimizer=ADAM)
            ((weights, history),) = fit(folder, trained, Blobs(2), steps=240, precision=precision, callbacks=[Seen()])
            assert types | {value.dtype for value in weights.values()} == {torch.float32}
            return [values["val/loss"] for values in history]

        full, half = train(tmp_path / "full", "32-true"), train(tmp_path / "half", "bf16-mixed")
        assert full[-1] < full[0] - 0.02
        assert half[-1] == pytest.approx(full[-1], abs=0.2 * (full[0] - full[-1]))


def test_no_row_is_lost_when_each_step_is_logged(tmp_path):
    """A checkpoint is written after a step and before Lightning writes its row."""
    check_kills(tmp_path, partial(resumable, log_every_n_steps=1), kills=4)
    lines = (tmp_path / "killed" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 30 + 4  # names, steps, validations


@pytest.mark.slow
def test_the_lines_of_the_documentation(tmp_path):
    """One training with many options at once; what is used later is the average."""
    for k in range(6):
        write(tmp_path / "images" / f"s{k}.nii.gz")
    line = (
        "data.train=[0,4] data.validation=[4,6] data.space.shape=[16,16,16] network.channels=[4,8] objective=mse "
        "trainer.accelerator=cpu trainer.max_epochs=3 trainer.limit_train_batches=4 callbacks.gap=null "
        "+callbacks/average=ema callbacks.average.decay=0.5 +callbacks/stop=early callbacks.stop.patience=5 "
        "schedule=polynomial gradient_checkpointing=true trainer.accumulate_grad_batches=2 optimizer.lr=0.01"
    )
    done = subprocess.run(
        [sys.executable, "train.py", *line.split(), f"data.path={tmp_path}", f"hydra.run.dir={tmp_path}/run"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    key = "encoder.0.0.conv.weight"
    average, now = (content[part][f"network.{key}"] for part in ("state_dict", "current_model_state"))
    loaded = load_checkpoint(best).network
    assert torch.equal(loaded.state_dict()[key], average)
    assert content["epoch"] == 2 or not torch.equal(average, now)
    release(best, tmp_path / "mine.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "mine.safetensors").network.state_dict()[key], average.half().float())
    fine = RegistrationModule(UNet(3, (4, 8)), module().objective, SGD)
    begin_with(fine, str(best))
    assert torch.equal(fine.network.state_dict()[key], average)
