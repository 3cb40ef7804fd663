"""The options of docs/training.md, each on a real training of tiny images."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging

from learnreg.errors import InputError
from learnreg.training import Constant, Cosine, LastCheckpoint, Polynomial, Steps
from tests.training.test_scale import (
    Blobs,
    check_kills,
    fit,
    in_a_process,
    module,
    no_earlier_launch,  # noqa: F401 - a fixture
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
        in_a_process(partial(resumable, tmp_path, extra=(ema,), steps=10))
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
        in_a_process(make)
        before = torch.load(tmp_path / "result.pt", weights_only=True)
        in_a_process(make)
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

    def test_time_decides(self, tmp_path):
        """Without a number of steps, a step of the rate comes at half of the time."""
        rates = Rates()
        trained = module(schedule=Steps([0.5], 0.1), warmup=0)
        fit(tmp_path, trained, Blobs(1), steps=-1, max_time={"seconds": 2}, callbacks=[rates], max_epochs=-1)
        share = sum(rate == 0.05 for rate in rates.found) / len(rates.found)
        assert sorted(set(rates.found)) == pytest.approx([0.005, 0.05])
        assert 0.2 < share < 0.8

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
