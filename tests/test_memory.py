"""What is measured is what is taken, and what does not fit is refused before it is begun."""

import math
from functools import partial

import pytest
import torch

import learnreg
from learnreg.apps.register import WRITING, check_writing, save
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.memory import check_fits, free_memory, peak_memory
from learnreg.methods import IterativeMethod, Registration, load_method
from learnreg.transforms import Affine, Displacement
from tests.processes import run

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


@linux
@pytest.mark.slow
def test_writing_and_measuring_takes_at_most_what_is_checked(tmp_path):
    run(partial(written_and_measured, tmp_path))
    assert int((tmp_path / "peak").read_text()) < WRITING * 4 * 144**3


def written_and_measured(folder):
    """Write the peak of a result of 144^3 with labels; in a new process, whose heap has no holes."""
    grid = Grid.regular((144, 144, 144))
    fixed, moving = (
        Image(blob(144, shift).data, grid, labels=(blob(144, shift).data > 0.5).long()) for shift in (0, 3)
    )
    field = Displacement(torch.rand(1, 3, 9, 9, 9), grid.resized((9, 9, 9))).displacement(grid)
    result = Registration(Displacement(field, grid), fixed, moving)
    small = Registration(Affine.identity(3), blob(16), blob(16, 1.0))
    save(small, {"method": "none"}, folder / "imports do not count")
    with peak_memory() as peak:
        metrics = save(result, {"method": "none"}, folder / "out")
    assert "warnings" not in metrics
    (folder / "peak").write_text(str(peak.bytes))


@linux
def test_a_result_that_cannot_be_written_for_memory_is_told_before_it_is_computed(monkeypatch):
    monkeypatch.setattr("learnreg.memory.free_memory", lambda device: 2_000_000)
    with pytest.raises(ValueError, match=r"write and measure a result of 48x48x48 voxels takes about 0.0 GB"):
        check_writing(blob(48), blob(8))
