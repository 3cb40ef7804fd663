from functools import partial
from typing import get_args

import pytest
import torch
from lightning_fabric.connector import _PRECISION_INPUT
from pytorch_lightning.callbacks import Timer

from learnreg.apps.wiring import MONITORED, PRECISIONS, begin_with, check_options
from learnreg.errors import InputError
from learnreg.networks import Oriented, UNet
from learnreg.networks.checkpoint import KEY, recipe
from learnreg.objective import Objective
from learnreg.similarity import MSE
from learnreg.training.module import RegistrationModule


def module(channels):
    return RegistrationModule(UNet(2, channels), Objective(MSE()), partial(torch.optim.SGD, lr=0.1))


def test_fine_tuning_begins_with_the_weights_of_another_training(tmp_path):
    before = module((4, 4))
    network = {"_target_": "learnreg.networks.UNet", "ndim": 2, "channels": [4, 4]}
    objective = {"_target_": "learnreg.objective.Objective", "similarity": {"_target_": "learnreg.similarity.MSE"}}
    stored = recipe(network, objective, {"spacing": 1.0, "shape": [16, 16], "multiple": 4})
    torch.save({"state_dict": before.state_dict(), KEY: stored}, tmp_path / "best.ckpt")
    after = module((4, 4))
    begin_with(after, str(tmp_path / "best.ckpt"))
    for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match=r"UNet of .*channels.*does not fit the network"):
        begin_with(module((4, 8)), str(tmp_path / "best.ckpt"))


def test_a_network_that_recognizes_orientations_begins_with_the_weights_of_one_that_does_not(tmp_path):
    """And the reverse: `start=hippocampus` fits the network without its classifier."""
    network = {"_target_": "learnreg.networks.UNet", "ndim": 2, "channels": [4, 4]}
    oriented = {"_target_": "learnreg.networks.Oriented", "network": network}
    objective = {"_target_": "learnreg.objective.Objective", "similarity": {"_target_": "learnreg.similarity.MSE"}}
    space = {"spacing": 1.0, "shape": [16, 16], "multiple": 4}
    plain, other = module((4, 4)), module((4, 4))
    other.network = Oriented(other.network)
    for before, after, config in ((plain, other, network), (other, plain, oriented), (other, other, oriented)):
        torch.save({"state_dict": before.state_dict(), KEY: recipe(config, objective, space)}, tmp_path / "a.ckpt")
        with torch.no_grad():
            for parameter in after.network.parameters():
                parameter.add_(1.0)
        begin_with(after, str(tmp_path / "a.ckpt"))
        stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
        inner = next(value for key, value in stored.items() if "head" not in key and key.endswith("0.conv.weight"))
        unet = after.network.network if after is other else after.network
        assert any(torch.equal(value, inner) for value in unet.state_dict().values())


def options(monitor="val/loss", callbacks=(), refine=0, report_pairs=0, **trainer):
    best = {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "monitor": monitor}
    more = {f"own{k}": {"_target_": target} for k, target in enumerate(callbacks)}
    return {
        "refine": refine,
        "report_pairs": report_pairs,
        "trainer": trainer,
        "callbacks": {"best": best, "off": None, **more},
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_time": "5min"}, "trainer.max_time=5min must be days:hours:minutes:seconds, such as 00:00:05:00"),
        ({"max_time": "00:05"}, "trainer.max_time=00:05 must be"),
        ({"max_time": "1:2:3:4"}, "trainer.max_time=1:2:3:4 must be"),
        ({"precision": 17}, "trainer.precision=17 is unknown; choose 32-true, bf16-mixed"),
        ({"precision": "half"}, "trainer.precision=half is unknown"),
        ({"monitor": "val/los"}, "callbacks.best.monitor=val/los .*did you mean 'val/loss'"),
        ({"monitor": "val_dice"}, "callbacks.best.monitor=val_dice .*did you mean 'val/dice'"),
        ({"monitor": "accuracy"}, "callbacks.best.monitor=accuracy .*choose from val/loss, val/dice"),
        ({"refine": -1}, "refine=-1 must be a number of at least 0"),
        ({"report_pairs": -1}, "report_pairs=-1 must be"),
    ],
)
def test_options_that_lightning_would_take_or_refuse_later(wrong, message):
    with pytest.raises(InputError, match=message):
        check_options(options(**wrong))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("12:00:00", 43200), ("100:00:01", 360001), ("01:02:03:04", 93784), ({"hours": 2}, 7200), (None, None)],
)
def test_times_become_those_of_lightning(given, seconds):
    config = options(max_time=given)
    check_options(config)
    found = config["trainer"]["max_time"]
    assert Timer(found)._duration == seconds


def test_what_may_be_right_is_accepted():
    own = "train/similarity", "train/loss", "val/similarity_loss", "val/dice_after_10", "lr-Adam"
    for monitor in (None, *MONITORED, *own):
        check_options(options(monitor))
    check_options(options("my score", callbacks=["mylab.Score"]))
    known = {str(value) for literal in get_args(_PRECISION_INPUT) for value in get_args(literal)}
    assert {"32", "bf16-mixed", "64-true"} <= known <= set(PRECISIONS)
    for precision in known:
        check_options(options(precision=precision))
    check_options(options(precision=32))
