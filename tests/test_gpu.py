"""The same results on a GPU; skipped where there is none."""

import pytest
import torch

from learnreg import register
from learnreg.similarity import lncc_loss
from tests.conftest import blob_image, make_grid

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_registration_agrees_with_the_cpu():
    fixed = blob_image(make_grid("RAS", (24, 26, 30), (1.2, 1.2, 1.5), torch.float32))
    moving = blob_image(make_grid("oblique", (26, 30, 26), (1.3, 1.1, 1.5), torch.float32), (2.5, -1.5, 1.0))
    by_cpu, by_gpu = (register(fixed, moving, "fast", device=device).transform for device in ("cpu", "cuda"))
    difference = (by_cpu.map_grid(fixed.grid) - by_gpu.map_grid(fixed.grid)).norm(dim=-1)
    assert difference.mean() < 0.1  # mm, after 110 iterations of different rounding


def test_lncc_agrees_with_the_cpu():
    a, b = torch.rand(1, 1, 20, 20, 20) + 1000, torch.rand(1, 1, 20, 20, 20)
    assert float(lncc_loss(a.cuda(), b.cuda())) == pytest.approx(float(lncc_loss(a, b)), abs=1e-3)
