import numpy as np
import pytest
import torch
from matplotlib.image import imread

from learnreg.grid import Grid
from learnreg.reporting.figures import registration_figure, save_figure
from learnreg.transforms import Affine
from tests.conftest import blob_image, make_grid


@pytest.mark.parametrize("ndim", [2, 3])
def test_figure(ndim, tmp_path, grid):
    if ndim == 2:
        grid = Grid.regular((20, 30), (1.0, 2.0))
    fixed, moving = blob_image(grid), blob_image(grid, (3.0, 0.0, 0.0))
    figure = registration_figure(
        fixed, moving, Affine.translation(torch.tensor([3.0] + [0.0] * (ndim - 1)).to(grid.affine)), title="a pair"
    )
    save_figure(figure, tmp_path / "a" / "f.png")
    picture = imread(tmp_path / "a" / "f.png")
    assert picture.shape[1] > 800
    assert np.ptp(picture[..., :3]) > 0.9
    rows = figure.axes[: 7 * (1 if ndim == 2 else 3)]
    before, after = (np.abs(rows[i].images[0].get_array()).sum() for i in (3, 4))
    assert after < 0.5 * before


def test_orientation_for_display_is_radiological():
    """An object toward the patient's left, front and head appears right and up, whatever the file's axes."""
    for name in ("LPS", "RAS", "permuted"):
        grid = make_grid(name, (24, 24, 24), (1.0, 1.0, 1.0))
        image = blob_image(grid, (5.0, -5.0, 5.0), (3.0, 3.0, 3.0))
        figure = registration_figure(image, image, Affine.identity(3, dtype=torch.float64))
        shown = [np.asarray(figure.axes[7 * row].images[0].get_array()) for row in range(3)]
        for picture in shown:
            rows, _ = np.nonzero(picture > 0.3)
            assert rows.mean() < 11.5, name
