"""One scorer: a training, an evaluation and a registration say the same of a pair."""

import json
from dataclasses import replace

import pytest
import torch

from learnreg.apps.register import measure
from learnreg.data.datasets import Case
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.methods import IterativeMethod, Registration
from learnreg.methods.evaluation import evaluate
from learnreg.metrics import score
from learnreg.networks import Network
from learnreg.objective import Objective
from learnreg.optimization import CenterOfView
from learnreg.similarity import MSE
from learnreg.training import RegistrationModule
from learnreg.transforms import Affine
from tests.conftest import blob_image

GRID = Grid.regular((12, 14, 16))


class Still(Network):
    ndim, in_channels = 3, 1

    def forward(self, fixed, moving):
        return Affine.identity(3)


def pair():
    """Label 3 is in the fixed image only, label 4 in the moving image only."""
    fixed, moving = blob_image(GRID), blob_image(GRID, (1.0, 0.0, 0.0))
    first, second = fixed.labels.clone(), moving.labels.clone()
    first[..., 0, 0, :4], second[..., 0, 0, 8:] = 3, 4
    return replace(fixed, labels=first), replace(moving, labels=second)


def test_all_who_score_a_pair_agree():
    fixed, moving = pair()
    wanted = float(score(fixed, moving, Affine.identity(3)).dice)
    both = score(blob_image(GRID), blob_image(GRID, (1.0, 0.0, 0.0)), Affine.identity(3))
    assert wanted == pytest.approx(float(both.dice), abs=0.01)  # the labels of one image alone do not count

    module, logged = RegistrationModule(Still(), Objective(MSE()), torch.optim.Adam), {}
    module.log = lambda name, value, **kwargs: logged.update({name: float(value)})
    module.eval().validation_step((fixed, moving), 0)
    rows = evaluate([Case("a", fixed, moving)], {"still": IterativeMethod({"center": CenterOfView()})})
    found = measure(Registration(Affine.identity(3), fixed, moving))
    assert [logged["val/dice"], rows[1]["dice"], found["after"]["dice"]] == pytest.approx([wanted] * 3)
    assert logged["val/sd_log_jacobian"] == pytest.approx(found["sd_log_jacobian"])
    assert 100 * logged["val/folding"] == pytest.approx(found["folding_percent"])


def test_each_pair_of_a_batch_has_its_own_labels():
    fixed, moving = pair()
    other = replace(fixed, labels=torch.where(fixed.labels == 2, 1, fixed.labels)), moving
    batch = score(stack([fixed, other[0]]), stack([moving, other[1]]), Affine.identity(3))
    alone = [float(score(*one, Affine.identity(3)).dice) for one in ((fixed, moving), other)]
    assert batch.dice.tolist() == pytest.approx(alone)
    assert batch.row(1)["dice_by_label"].keys() == {"1"}


def test_what_is_not_known_is_left_out():
    fixed, moving = pair()
    bare = Image(fixed.data, fixed.grid)
    assert score(bare, moving, Affine.identity(3)).dice is None
    row = score(bare, bare, Affine.identity(3), truth=Affine.translation([1.0, 0.0, 0.0])).row()
    assert row["error_mm"] == pytest.approx(1)
    assert json.loads(json.dumps(row)).keys() == {
        "error_mm",
        "sd_log_jacobian",
        "sd_log_jacobian_learn2reg",
        "folding_percent",
    }
