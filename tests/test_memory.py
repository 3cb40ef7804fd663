"""What is measured is what is taken, and what does not fit is refused before it is begun."""

import math

import pytest
import torch

import learnreg
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.memory import check_fits, free_memory, peak_memory
from learnreg.methods import IterativeMethod, load_method

linux = pytest.mark.skipif(free_memory() is None, reason="the system does not tell")


def blob(n, shift=0.0):
    grid = Grid.regular((n, n, n))
    return Image(torch.exp(-(grid.points - shift).square().sum(-1) / (n / 5) ** 2)[:, None], grid)


@linux
def test_the_peak_of_a_block_is_measured():
    with peak_memory() as peak:
        torch.ones(64 * 2**20 // 4).sum()
    assert 60e6 < peak.bytes < 90e6
    with peak_memory() as peak:
        pass
    assert peak.bytes < 20e6


@linux
def test_what_does_not_fit_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"The whole world takes about \d+.* GB and .* are free. Buy more."):
        check_fits(1e18, "cpu", "The whole world", "Buy more.")
    check_fits(1e3, "cpu", "A crumb", "")


@linux
def test_a_stage_refuses_an_image_that_does_not_fit(monkeypatch):
    monkeypatch.setattr("learnreg.memory.free_memory", lambda device: 2_000_000)
    with pytest.raises(ValueError, match=r"on 48x48x48 voxels takes about .* Leave out the finest level"):
        learnreg.register(blob(48), blob(48, 2.0), method="fast", progress=False)


@linux
@pytest.mark.parametrize("preset", ["fast", "monomodal"])
@pytest.mark.slow
def test_a_dense_stage_takes_at_most_what_it_says(preset):
    fixed, moving = blob(112), blob(112, 3.0)
    method = load_method(preset)
    assert isinstance(method, IterativeMethod)
    for stage in method.stages.values():
        if hasattr(stage, "limits"):
            stage.limits = tuple(min(2, n) for n in stage.limits)
    method(blob(24), blob(24, 1.0))  # imports, thread pools and caches do not count
    with peak_memory() as peak:
        method(fixed, moving)
    image = 4 * math.prod(fixed.grid.shape)
    features = 2 * (4 * image)  # the two channels and their gradients, of either image
    channels = fixed.with_data(fixed.data.expand(-1, 2, -1, -1, -1))
    assert peak.bytes < method.stages["deformation"].needed_bytes(channels) + features + 64e6  # of the libraries
