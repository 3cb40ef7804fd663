from itertools import product

import pytest
import torch

from learnreg.data.preprocessing import ModelSpace
from learnreg.data.shapes import ShapesData
from learnreg.data.synthesis import painted, random_shapes
from learnreg.grid import Grid
from learnreg.io import write_image
from learnreg.metrics import dice_scores


def make(**changes):
    return ShapesData(ModelSpace(1.0, (24, 26, 28)), **{"labels": 6, "pairs": 4, "validation_pairs": 2, **changes})


def test_shapes_fill_the_grid_with_all_labels():
    grid = Grid.regular((24, 24, 24))
    labels = random_shapes(grid, 5, smoothness=4.0, generator=torch.Generator().manual_seed(0))
    assert labels.unique().tolist() == [1, 2, 3, 4, 5]
    same = labels[:, :, 1:] == labels[:, :, :-1]
    assert float(same.float().mean()) > 0.85  # shapes, not noise


def test_contrasts_have_nothing_to_do_with_each_other():
    grid = Grid.regular((24, 24, 24))
    generator = torch.Generator().manual_seed(0)
    labels = random_shapes(grid, 8, smoothness=4.0, generator=generator)
    images = torch.cat([painted(labels, grid, generator=generator).data.flatten(1) for _ in range(20)])
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    correlation = torch.corrcoef(images)[~torch.eye(20, dtype=torch.bool)]
    assert float(correlation.abs().max()) < 0.99
    assert float(correlation.mean().abs()) < 0.2


def test_pairs_share_shapes_and_training_ones_are_drawn_anew():
    data = make()
    loader = data.train_dataloader()
    first, second = list(loader), list(loader)
    assert len(first) == 4
    assert not any(torch.equal(a[0].data, b[0].data) for a, b in product(first, second))
    fixed, moving = first[0]
    assert fixed.data.shape == (1, 1, 24, 26, 28)
    overlap = dice_scores(moving.labels, fixed.labels, [1, 2, 3, 4, 5, 6]).nanmean()
    assert 0.3 < float(overlap) < 0.95
    assert torch.equal(next(iter(data.train_dataloader()))[0].data, fixed.data)


def test_validation_pairs_stay():
    batches = [list(make().val_dataloader()) for _ in range(2)]
    assert len(batches[0]) == 2
    assert all(torch.equal(a[0].data, b[0].data) for a, b in zip(*batches, strict=True))
    assert torch.equal(next(make().cases()).fixed.data, batches[0][0][0].data)


def test_label_maps_of_ones_own(tmp_path):
    grid = Grid.regular((24, 26, 28))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        labels = torch.zeros(1, *grid.shape)
        labels[:, 6 + number : 16, 8:18, 8:18] = number + 1
        for folder in ("images", "labels"):
            write_image(labels, grid, tmp_path / folder / f"s{number}.nii.gz")
    data = make(path=tmp_path, train=[0, 3])
    data.setup()
    fixed, moving = data.pair(torch.Generator().manual_seed(0))
    assert fixed.labels.unique().tolist() != moving.labels.unique().tolist()  # two people
    with pytest.raises(ValueError, match="at least 2 subjects"):
        make(path=tmp_path, train=[0, 1]).setup()


def test_errors():
    with pytest.raises(ValueError, match=r"data.space.shape"):
        ShapesData(ModelSpace(1.0))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make(labels=1)
