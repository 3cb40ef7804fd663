from functools import partial

import pytest
import torch

from learnreg.apps.wiring import begin_with
from learnreg.errors import InputError
from learnreg.networks import UNet
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
