"""What was computed once is not copied or pickled."""

import copy
import pickle

import pytest
import torch

import learnreg
from learnreg.transforms import Sampled, Symmetric, Velocity


def things():
    grid = learnreg.Grid.regular((16, 16, 16))
    velocity = Velocity(torch.rand(1, 3, *grid.shape), grid)
    image = learnreg.Image(torch.rand(1, 1, *grid.shape), grid)
    return {
        "grid": (grid, lambda g: (g.points, g.corners, g.normalizing)),
        "velocity": (velocity, lambda v: v.integrated),
        "symmetric": (Symmetric(velocity, velocity), lambda s: s.map_grid(grid)),
        "sampled": (Sampled(velocity, grid), lambda s: s.field),
        "registration": (learnreg.Registration(velocity, image, image), lambda r: r.warped),
    }


@pytest.mark.parametrize("name", list(things()))
def test_a_pickle_does_not_grow(name):
    value, use = things()[name]
    before = len(pickle.dumps(value))
    use(value)
    assert len(pickle.dumps(value)) == before
    assert set(vars(copy.deepcopy(value))) == set(vars(copy.copy(value))) == set(vars(things()[name][0]))
