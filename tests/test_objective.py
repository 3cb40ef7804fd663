import pytest
import torch

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.objective import LabelOverlap, Objective, Penalty
from learnreg.regularization import Diffusion
from learnreg.similarity import LNCC, MSE
from learnreg.transforms import Affine, Displacement, Velocity
from tests.conftest import blob_image, make_grid


def make(**kwargs):
    return Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.5)}, **kwargs)


def test_total_is_the_weighted_sum(grid):
    fixed, moving = blob_image(grid), blob_image(grid, (2.0, 0.0, 0.0))
    field = torch.rand(1, 3, *grid.shape, dtype=torch.float64)
    loss = make(supervision=LabelOverlap([1, 2], weight=2.0))(fixed, moving, Displacement(field, grid))
    expected = loss.terms["similarity"] + 0.5 * loss.terms["diffusion"] + 2.0 * loss.terms["dice"]
    assert torch.allclose(loss.total, expected)
    assert loss.warped.grid is grid


def test_initial_is_composed_and_not_penalized(grid):
    fixed = blob_image(grid)
    shift = Affine.translation(torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64))
    moving = blob_image(grid, (3.0, -2.0, 1.0))
    rest = Velocity(torch.zeros(1, 3, *grid.shape, dtype=torch.float64), grid)
    with_initial, without = make()(fixed, moving, rest, shift), make()(fixed, moving, rest)
    assert float(with_initial.total) < 0.3 * float(without.total)
    assert float(with_initial.terms["diffusion"]) == 0
    assert "diffusion" not in make()(fixed, moving, shift).terms


def test_both_masks_count(grid):
    image = blob_image(grid)
    spoiled = image.data.clone()
    spoiled[:, :, :5] += 3
    mask = torch.ones_like(image.data)
    mask[:, :, :5] = 0
    identity = Affine.identity(3, dtype=torch.float64)
    objective = Objective(MSE())
    assert float(objective(image, Image(spoiled, grid), identity).total) > 0.1
    assert float(objective(image, Image(spoiled, grid, mask), identity).total) == pytest.approx(0, abs=1e-12)
    assert float(objective(Image(image.data, grid, mask), Image(spoiled, grid), identity).total) == pytest.approx(
        0, abs=1e-12
    )


def test_label_overlap_falls_with_alignment_and_has_a_gradient(grid):
    fixed, moving = blob_image(grid), blob_image(grid, (3.0, 0.0, 0.0))
    objective = Objective(LNCC(3), supervision=LabelOverlap([1, 2]))
    field = torch.zeros(1, 3, *grid.shape, dtype=torch.float64, requires_grad=True)
    apart = objective(fixed, moving, Displacement(field, grid)).terms["dice"]
    apart.backward()
    assert field.grad.abs().sum() > 0
    shift = Affine.translation(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
    assert float(objective(fixed, moving, shift).terms["dice"]) < 0.5 * float(apart.detach())


def test_unsupervised_drops_the_labels(grid):
    objective = make(supervision=LabelOverlap([1]))
    image = Image(blob_image(grid).data, grid)
    with pytest.raises(ValueError, match="no labels"):
        objective(image, image, Affine.identity(3, dtype=torch.float64))
    assert objective.unsupervised()(image, image, Affine.identity(3, dtype=torch.float64)).terms.keys() == {
        "similarity"
    }


def test_failures():
    flat = Image(torch.zeros(1, 1, 5, 5), Grid.regular((5, 5)))
    solid = Image(torch.zeros(1, 1, 5, 5, 5), Grid.regular((5, 5, 5)))
    with pytest.raises(ValueError, match="fixed is 2-D and moving is 3-D"):
        Objective(MSE())(flat, solid, Affine.identity(2))
    with pytest.raises(ValueError, match="at least 0"):
        Penalty(Diffusion(), -1.0)
    with pytest.raises(ValueError, match="label values"):
        LabelOverlap([])


def test_gradcheck():
    grid = make_grid(shape=(4, 5, 4), spacing=(1.0, 1.2, 0.9))
    fixed = Image(torch.rand(1, 1, *grid.shape, dtype=torch.float64), grid)
    moving = Image(torch.rand(1, 1, *grid.shape, dtype=torch.float64), grid)
    field = torch.full((1, 3, *grid.shape), 0.13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: make()(fixed, moving, Displacement(u, grid)).total, (field,))
