"""The matching network: laws of networks, and what it learns from landmarks."""

import math
from functools import partial

import pytest
import torch

from learnreg.data import RandomPairs
from learnreg.data.anatomies import seeds_of
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks import Cascade, MatchingNetwork, Pyramid
from learnreg.networks.matching import plausible, robust_fit
from learnreg.objective import Objective
from learnreg.similarity import MSE
from learnreg.transforms import Affine, linear_through_landmarks
from tests.networks.test_networks import NetworkLaws

make = partial(MatchingNetwork, channels=(4, 8), descriptors=8, weight=0.0)


class TestLaws(NetworkLaws):
    weights = 0.3

    def make(self, ndim=3):
        return make(ndim)

    def test_starts_close_to_the_identity(self):
        """It does not: a new network matches all with the middle; equal images it matches with themselves later."""
        grid = Grid.regular((16, 16, 16))
        image = Image(torch.rand(1, 1, *grid.shape), grid)
        assert self.make()(image, image).displacement(grid).isfinite().all()


def test_weights_are_those_of_repeated_landmarks():
    fixed, moving = torch.rand(1, 6, 3, dtype=torch.float64), torch.rand(1, 6, 3, dtype=torch.float64)
    counts = torch.tensor([1, 2, 0, 3, 1, 1])
    repeated = [points.repeat_interleave(counts, dim=1) for points in (fixed, moving)]
    for kind in ("translation", "rigid", "similarity", "affine"):
        weighted = linear_through_landmarks(fixed, moving, kind, weights=counts[None].double())
        assert torch.allclose(weighted.matrix, linear_through_landmarks(*repeated, kind).matrix, atol=1e-6)


def test_weights_of_zero_have_a_finite_gradient():
    weights = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    points = torch.rand(1, 5, 3)
    robust_fit(points, points + 1, weights, "affine", 0.5).matrix.sum().backward()
    assert weights.grad.isfinite().all()


def test_a_wrong_fifth_of_the_matches_counts_little():
    torch.manual_seed(0)
    points = torch.rand(1, 100, 3) * 50
    truth = Affine.about(
        torch.matrix_exp(torch.tensor([[[0.0, 0.5, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.1]]])),
        torch.ones(1, 3),
        torch.full((1, 3), 25.0),
    )
    moved = truth(points)
    moved[:, :20] = torch.rand(1, 20, 3) * 50
    plain = linear_through_landmarks(points, moved)
    robust = robust_fit(points, moved, torch.ones(1, 100), "affine", 1.0)
    errors = [(found(points) - truth(points)).norm(dim=-1).mean() for found in (plain, robust)]
    assert errors[1] < 0.3 * errors[0]


def test_implausible_maps_are_brought_into_range():
    mirrored = torch.diag_embed(torch.tensor([[-1.0, 1.0, 5.0, 1.0]]))
    found = plausible(Affine(mirrored)).matrix[0, :3, :3]
    assert float(torch.linalg.det(found)) > 0
    assert torch.linalg.svdvals(found).tolist() == pytest.approx([2.5, 1.0, 1.0])
    turned = Affine(torch.eye(4)[None])
    assert torch.allclose(plausible(turned).matrix, turned.matrix)


@pytest.mark.slow
def test_descriptors_learn_to_match():
    """From landmarks of random pairs of unrelated contrasts; new pairs are matched far better than by chance."""
    torch.manual_seed(0)
    pairs = RandomPairs((32, 32), rotation=45.0, shift=0.1, bend=0.0, templates=0.0)
    network = MatchingNetwork(2, (8, 16, 16), descriptors=16, resolution=32).train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    objective = Objective(MSE())

    def terms(indices):
        fixed, moving, _ = pairs(seeds_of(0, indices))
        return network.auxiliary_terms(network.predict(fixed, moving), fixed, moving, objective)

    for step in range(100):
        optimizer.zero_grad()
        sum(term.weighted for term in terms(range(8 * step, 8 * step + 8)).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = terms(range(10_000, 10_032))
    assert set(found) == {"matches"}
    assert float(found["matches"].value) < 0.65 * math.log(8 * 8)  # that of a guess among all places


def test_all_weights_of_the_cascade_learn():
    """Unused weights would stop a training on several processes."""
    network = Cascade([MatchingNetwork(2, (4, 8, 8), descriptors=4), Pyramid(2, (4, 8), context=True)]).train()
    fixed, moving, _ = RandomPairs((16, 16), templates=0.0)(seeds_of(0, [0, 1]))
    objective = Objective(MSE())
    prediction = network.predict(fixed, moving)
    total = objective(fixed, moving, prediction.transform).total
    total = total + sum(t.weighted for t in network.auxiliary_terms(prediction, fixed, moving, objective).values())
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="two widths"):
        MatchingNetwork(3, (4,))
    with pytest.raises(ValueError, match="fits translation"):
        MatchingNetwork(3, (4, 8), kind="spline")
    with pytest.raises(ValueError, match="each fine search"):
        MatchingNetwork(3, (4, 8), fine=(2, 0))
    network = MatchingNetwork(2, (4, 8), descriptors=4).train()
    image = Image(torch.rand(1, 1, 16, 16), Grid.regular((16, 16)))
    assert network.auxiliary_terms(network.predict(image, image), image, image, Objective(MSE())) == {}
