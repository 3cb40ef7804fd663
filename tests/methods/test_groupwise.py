"""A template lies in the middle of its group."""

import pytest
import torch

from learnreg.data.synthesis import random_velocity
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.methods import build_template, load_method
from learnreg.transforms import Affine, Displacement
from learnreg.warping import warp

pytestmark = pytest.mark.slow


def group(count=4, size=32):
    """One image of a bright shape in a gray one under ``count`` random diffeomorphisms, with its labels."""
    grid = Grid.regular((size, size, size))
    radius = (grid.points / torch.tensor([1.0, 0.8, 0.6])).norm(dim=-1)
    labels = ((radius < 10).int() + (radius < 5).int())[:, None]
    source = Image((labels + torch.sigmoid(8 - radius)[:, None]) * 100.0, grid, None, labels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield warp(source, random_velocity(grid, magnitude=3.0, smoothness=5.0, generator=generator), grid)


def test_rounds_sharpen_the_mean_and_center_it():
    images = list(group())
    steps = []
    template = build_template(images, load_method("fast"), rounds=2, on_pair=steps.append)
    plain = torch.cat([image.data for image in images]).div(images[0].data.max()).std(0).mean()
    assert template.rounds[-1].spread < 0.5 * plain
    assert len(steps) == 8 and len(template.transforms) == 4
    mean = torch.stack([t.displacement(template.image.grid) for t in template.transforms]).mean(0)
    assert mean.norm(dim=1).mean() < 0.1
    assert set(template.image.labels.unique().tolist()) == {0, 1, 2}


def test_the_mean_of_an_image_and_its_shifted_copy_lies_between():
    first = next(group())
    shift = Affine.translation([4.0, 0.0, 0.0])
    second = warp(first, shift, first.grid)
    template = build_template([first, second], load_method("affine"), rounds=2)
    to_first, to_second = (t.displacement(template.image.grid)[0, :, 16, 16, 16] for t in template.transforms)
    assert torch.allclose(to_first - to_second, torch.tensor([4.0, 0.0, 0.0]), atol=0.2)
    assert torch.allclose(to_first + to_second, torch.zeros(3), atol=0.2)
    assert isinstance(template.transforms[0].inverse()(first.grid.points), torch.Tensor)
    assert not isinstance(template.transforms[0], Displacement)


def test_one_image_is_no_group():
    with pytest.raises(ValueError, match="at least 2 images"):
        build_template([next(group())], load_method("fast"))
