from dataclasses import replace

import pytest
import torch

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks import UNet
from learnreg.objective import Objective
from learnreg.optimization import DenseParametrization, FieldStage
from learnreg.similarity import MSE
from learnreg.training.distillation import Distillation
from learnreg.transforms import Affine, Displacement
from tests.conftest import blob_image


def stage(iterations=30):
    return FieldStage(Objective(MSE()), DenseParametrization, factors=(2,), iterations=(iterations,), learning_rate=0.3)


def pair():
    grid = Grid.regular((20, 20, 20))
    return blob_image(grid), blob_image(grid, (2.0, 0.0, 0.0))


def test_zero_where_the_solver_is():
    fixed, moving = pair()
    found = stage()(fixed, moving).transform.displacement(fixed.grid)
    term = Distillation({"stage": stage()})
    identity = float(term(fixed, moving, Affine.identity(3)))
    assert identity == pytest.approx(float(found.square().sum(1).mean()), rel=1e-3)
    assert float(term(fixed, moving, Displacement(found, fixed.grid))) < 1e-4 * identity


@pytest.mark.slow
def test_the_solver_is_given_the_masks():
    """What a mask leaves out teaches nothing."""
    fixed, moving = pair()
    mask = torch.ones_like(fixed.data)
    mask[:, :, 10:] = 0
    spoiled = fixed.data.clone()
    spoiled[:, :, 10:] += torch.rand(spoiled[:, :, 10:].shape, generator=torch.Generator().manual_seed(0))
    term, answers = Distillation({"stage": stage()}), []
    for data, counted in ((fixed.data, mask), (spoiled, mask), (spoiled, None)):
        answers.append(term.target(Image(data, fixed.grid, counted), moving, None))
    found = stage()(Image(fixed.data, fixed.grid, mask), moving).transform.displacement(fixed.grid)
    assert torch.allclose(answers[0], found, atol=2e-3)  # half precision
    assert (answers[1] - answers[0]).abs().mean() < 0.1 * (answers[2] - answers[0]).abs().mean()
    batch = Image(fixed.data.repeat(2, 1, 1, 1, 1), fixed.grid, mask.repeat(2, 1, 1, 1, 1))
    both = Image(moving.data.repeat(2, 1, 1, 1, 1), fixed.grid)
    assert float(term(batch, both, Displacement(found, fixed.grid))) < 1e-4


def test_each_pair_of_a_batch_counts_the_same_whatever_its_mask_is():
    fixed, moving = pair()
    masks = torch.ones(2, *fixed.data.shape[1:])
    masks[1, :, :, 6:] = 0
    term, identity = Distillation({"stage": stage(5)}), Affine.identity(3)
    alone = [float(term(Image(fixed.data, fixed.grid, m[None]), moving, identity, m[None])) for m in masks]
    both = [Image(image.data.repeat(2, 1, 1, 1, 1), image.grid) for image in (fixed, moving)]
    together = float(term(replace(both[0], mask=masks), both[1], identity, masks))
    assert alone[0] != pytest.approx(alone[1], rel=5e-3)
    assert together == pytest.approx(sum(alone) / 2, rel=1e-4)


def test_a_pair_is_solved_once(monkeypatch):
    fixed, moving = pair()
    term = Distillation({"stage": stage()}, keep=1)
    first = term(fixed, moving, Affine.identity(3))
    monkeypatch.setattr(FieldStage, "forward", None)  # it is not called again
    assert float(term(fixed, moving, Affine.identity(3))) == pytest.approx(float(first))
    with pytest.raises(TypeError):
        term(moving, fixed, Affine.identity(3))


@pytest.mark.slow
def test_what_was_solved_is_found_in_the_folder(tmp_path, monkeypatch):
    fixed, moving = pair()
    identity = Affine.identity(3)
    first = float(Distillation({"stage": stage()}, folder=tmp_path / "solved")(fixed, moving, identity))
    assert len(list((tmp_path / "solved").glob("*.safetensors"))) == 1
    Distillation({"stage": stage(20)}, folder=tmp_path / "solved")(fixed, moving, identity)
    assert len(list((tmp_path / "solved").glob("*.safetensors"))) == 2  # another method's is another's
    monkeypatch.setattr(FieldStage, "forward", None)
    again = Distillation({"stage": stage()}, folder=tmp_path / "solved")
    assert float(again(fixed, moving, identity)) == first
    with pytest.raises(TypeError):
        again(fixed, Image(moving.data, Grid.regular((20, 20, 20), 1.1)), identity)


def test_a_network_learns_the_answer():
    torch.manual_seed(0)
    fixed, moving = pair()
    network, term = UNet(3, (8, 16)), Distillation({"stage": stage()})
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = term(fixed, moving, network(fixed, moving))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_from_the_answer_the_target_is_better_than_the_answer():
    fixed, moving = pair()
    term = Distillation({"stage": stage(40)}, from_answer=True)
    answer = Affine.translation([1.0, 0.0, 0.0])
    target = Displacement(term.target(fixed, moving, answer), fixed.grid)
    objective = Objective(MSE())
    assert float(objective(fixed, moving, target).total) < 0.7 * float(objective(fixed, moving, answer).total)


def test_errors():
    with pytest.raises(ValueError, match="stages of a method"):
        Distillation({})
