"""Shapes are checked while tests run: each mistake is caught at the call that makes it."""

import jaxtyping
import pytest
import torch
from jaxtyping import config

from learnreg.fields import compose, exponential
from learnreg.grid import Grid
from learnreg.metrics import dice_scores
from learnreg.sampling import sample, sample_labels
from learnreg.similarity import mse_loss
from learnreg.transforms import Displacement
from learnreg.warping import warp

GRID = Grid.regular((6, 7, 8))
FIELD, IMAGE, LABELS = (
    torch.zeros(1, 3, 6, 7, 8),
    torch.rand(1, 1, 6, 7, 8),
    torch.ones(1, 1, 6, 7, 8, dtype=torch.long),
)
MISTAKES = {
    "channels last": lambda: exponential(FIELD.movedim(1, -1), GRID.points),
    "another shape": lambda: compose(FIELD, torch.zeros(1, 3, 6, 7, 9), GRID),
    "no batch": lambda: mse_loss(IMAGE, IMAGE[0]),
    "labels in float": lambda: dice_scores(LABELS.float(), LABELS, [1]),
    "an image for a grid": lambda: sample(IMAGE, IMAGE, GRID.points),
    "two channels of labels": lambda: sample_labels(LABELS.expand(-1, 2, -1, -1, -1), GRID, GRID.points),
    "integers for intensities": lambda: Displacement(FIELD.long(), GRID),
    "a tensor for an image": lambda: warp(IMAGE, Displacement(FIELD, GRID), GRID),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_caught(name):
    with pytest.raises((jaxtyping.TypeCheckError, TypeError)):
        config.update("jaxtyping_disable", False)  # pytest.raises turns the checks off, see conftest.py
        MISTAKES[name]()
