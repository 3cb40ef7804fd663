"""The same results on a GPU; skipped where there is none."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from learnreg import register
from learnreg.configs.files import config_dir
from learnreg.data import RandomTransform
from learnreg.data.datasets import Case
from learnreg.methods import load_method
from learnreg.methods.evaluation import evaluate
from learnreg.objective import Objective
from learnreg.randomness import seeded
from learnreg.similarity import MSE, lncc_loss
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


def test_evaluation_computes_there_and_scores_here():
    grid = make_grid("RAS", (24, 26, 30), (1.2, 1.2, 1.5), torch.float32)
    case = Case("pair", blob_image(grid), blob_image(grid, (2.5, -1.5, 1.0)))
    by_cpu, by_gpu = (evaluate([case], {"fast": load_method("fast")}, device=d)[-1]["dice"] for d in ("cpu", "cuda"))
    assert by_gpu == pytest.approx(by_cpu, abs=0.02)


@pytest.mark.parametrize("name", ["pyramid", "swin", "unrolled", "keypoints", "affine_pyramid"])
def test_networks_train_there(name):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        network = instantiate(compose(f"network/{name}").network, _convert_="all").cuda()
    grid = make_grid(shape=(32, 32, 32), dtype=torch.float32)
    pair = [blob_image(grid, c).to("cuda") for c in ((0.0, 0.0, 0.0), (2.0, -1.0, 1.0))]
    with torch.autocast("cuda", torch.bfloat16):
        loss = Objective(MSE())(*pair, network(*pair)).total
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_augmentation_there_moves_images_as_here():
    image = blob_image(make_grid(shape=(32, 32, 32), dtype=torch.float32))
    augmentation = RandomTransform(bend=1.0, bias=0.2)
    with seeded("pair", 0):
        here = augmentation(image)
    with seeded("pair", 0):
        there = augmentation(image.to("cuda")).to("cpu")
    assert (here.labels != there.labels).float().mean() < 1e-3
    assert not torch.equal(here.labels, image.labels)
