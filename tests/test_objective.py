import pytest
import torch

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.objective import Objective, Penalty
from learnreg.regularization import Diffusion, LogJacobian
from learnreg.similarity import LNCC, MSE
from learnreg.supervision import LabelOverlap, LandmarkDistance
from learnreg.terms import Weighted
from learnreg.transforms import Affine, Displacement, Symmetric, Velocity
from tests.conftest import blob_image, make_grid


def make(**kwargs):
    return Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.5)}, **kwargs)


def test_total_is_the_weighted_sum(grid):
    fixed, moving = blob_image(grid), blob_image(grid, (2.0, 0.0, 0.0))
    field = torch.rand(1, 3, *grid.shape, dtype=torch.float64)
    loss = make(supervision={"dice": Weighted(LabelOverlap([1, 2]), 2.0)})(fixed, moving, Displacement(field, grid))
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
    objective = Objective(LNCC(3), supervision={"dice": Weighted(LabelOverlap([1, 2]))})
    field = torch.zeros(1, 3, *grid.shape, dtype=torch.float64, requires_grad=True)
    apart = objective(fixed, moving, Displacement(field, grid)).terms["dice"]
    apart.backward()
    assert field.grad.abs().sum() > 0
    shift = Affine.translation(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
    assert float(objective(fixed, moving, shift).terms["dice"]) < 0.5 * float(apart.detach())


def test_labels_are_drawn_and_their_mean_is_that_of_all(grid):
    fixed, moving = blob_image(grid), blob_image(grid, (3.0, 0.0, 0.0))
    values = sorted(set(fixed.labels.unique().tolist()) - {0})
    assert len(values) > 1
    shift = Affine.translation(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    whole = LabelOverlap(values)(fixed, moving, shift)
    assert float(LabelOverlap()(fixed, moving, shift)) == pytest.approx(float(whole))
    each = [float(LabelOverlap([v])(fixed, moving, shift)) for v in values]
    torch.manual_seed(0)
    drawn = [float(LabelOverlap(sample=1)(fixed, moving, shift)) for _ in range(30)]
    assert {round(d, 9) for d in drawn} == {round(e, 9) for e in each}
    blank = Image(fixed.data, grid, labels=torch.zeros_like(fixed.labels))
    assert float(LabelOverlap()(blank, moving, shift)) == 0
    with pytest.raises(ValueError, match="at least 1 label"):
        LabelOverlap(sample=0)


def test_a_penalty_can_be_weighted_otherwise(grid):
    image, velocity = blob_image(grid), Velocity(torch.rand(1, 3, *grid.shape, dtype=torch.float64), grid)
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 1.0)})
    other = objective.weighted("diffusion", 3.0)
    first, second = (o(image, image, velocity) for o in (objective, other))
    assert float(second.total - first.total) == pytest.approx(2 * float(first.terms["diffusion"]))
    with pytest.raises(ValueError, match="no penalty 'bending'; it has diffusion"):
        objective.weighted("bending", 1.0)


def test_unsupervised_drops_the_labels(grid):
    objective = make(supervision={"dice": Weighted(LabelOverlap([1]))})
    image = Image(blob_image(grid).data, grid)
    with pytest.raises(ValueError, match="no labels"):
        objective(image, image, Affine.identity(3, dtype=torch.float64))
    assert objective.unsupervised()(image, image, Affine.identity(3, dtype=torch.float64)).terms.keys() == {
        "similarity"
    }


def test_a_penalty_acts_on_the_field_or_on_the_displacement(grid):
    image, field = blob_image(grid), 3 * torch.rand(1, 3, *grid.shape, dtype=torch.float64)
    velocity = Velocity(field, grid)
    objective = Objective(
        MSE(), {"own": Penalty(Diffusion(), 1.0), "map": Penalty(LogJacobian(), 1.0, acts_on="displacement")}
    )
    terms = objective(image, image, velocity).terms
    assert float(terms["own"]) == pytest.approx(float(Diffusion()(field, grid)))
    assert float(terms["map"]) == pytest.approx(float(LogJacobian()(velocity.displacement(grid), grid)))
    still = Displacement(torch.zeros_like(field), grid)
    for sides in ((velocity, still), (still, velocity)):  # both sides of a symmetric transform count
        both = objective(image, image, Symmetric(*sides)).terms
        assert float(both["map"]) == pytest.approx(float(terms["map"]))
    with pytest.raises(ValueError, match="must be 'field' or 'displacement'"):
        Penalty(Diffusion(), 1.0, acts_on="velocity")


def test_local_weights_are_given_in_physical_space(grid):
    """On a coarser field grid, sampled there."""
    coarse = grid.coarsened(2)
    where = Image((grid.points[..., :1].movedim(-1, 1) > grid.center[0, 0]).double(), grid)
    field = torch.rand(1, 3, *coarse.shape, dtype=torch.float64)
    left = (coarse.points[..., 0] < grid.center[0, 0] - 6)[:, None]
    objective = Objective(MSE(), {"local": Penalty(Diffusion(), 1.0, where=where)})
    image = blob_image(grid)
    smooth_left = torch.where(left, torch.zeros_like(field), field)
    rough_left = torch.where(left, field, torch.zeros_like(field))
    values = [float(objective(image, image, Displacement(f, coarse)).terms["local"]) for f in (smooth_left, rough_left)]
    assert values[0] > 5 * values[1]


def test_landmark_distance(grid):
    points = torch.tensor([[[1.0, 2.0, 3.0], [0.0, -4.0, 2.0], [torch.nan] * 3]], dtype=torch.float64)
    shift = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    data = blob_image(grid).data
    fixed, moving = Image(data, grid, landmarks=points), Image(data, grid, landmarks=points + shift)
    objective = Objective(MSE(), supervision={"landmarks": Weighted(LandmarkDistance(), 0.1)})
    loss = objective(fixed, moving, Affine.identity(3, dtype=torch.float64))
    assert float(loss.terms["landmarks"]) == pytest.approx(5, abs=2e-3)
    assert float(loss.total) == pytest.approx(0.5, abs=2e-4)
    assert float(objective(fixed, moving, Affine.translation(shift)).terms["landmarks"]) == pytest.approx(0, abs=1e-9)
    offset = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    objective(fixed, moving, Affine.translation(offset)).terms["landmarks"].backward()
    assert torch.allclose(offset.grad, -shift / 5, atol=1e-4)
    with pytest.raises(ValueError, match="no landmarks in pairs"):
        objective(Image(data, grid), moving, Affine.identity(3))


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
