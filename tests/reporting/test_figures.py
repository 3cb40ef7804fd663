import numpy as np
import pytest
import torch
from matplotlib.image import imread

from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.memory import free_memory, peak_memory
from learnreg.reporting.figures import registration_figure, save_figure
from learnreg.transforms import Affine, Displacement, Sampled
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid, smooth_values


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


def test_the_planes_are_those_of_the_whole_volume(grid):
    """Images, determinant and mapped lattice of a plane are what the whole volume has there."""
    fixed = blob_image(grid, (4.0, -3.0, 6.0))
    field = 2.0 * torch.stack([smooth_values(grid.points, shift) for shift in (0.0, 1.0, 2.0)], dim=1)
    transform = Displacement(field, grid)
    warped, determinant = warp(fixed, transform, grid).data[0, 0], jacobian_determinant(field, grid)[0]
    for given in (transform, Sampled(transform, grid)):
        figure = registration_figure(fixed, fixed, given)
        for axis in range(3):
            ours = np.asarray(figure.axes[7 * axis + 6].images[0].get_array())
            planes = [determinant.select(axis, k).numpy() for k in range(grid.shape[axis])]
            turned = [p for plane in planes for q in (plane, plane.T) for p in (q, q[::-1], q[:, ::-1], q[::-1, ::-1])]
            found = [k for k, p in enumerate(turned) if p.shape == ours.shape and np.allclose(p, ours)]
            assert len(found) == 1
            seen = warped.select(axis, found[0] // 8).numpy()
            low, high = np.quantile(fixed.data.numpy(), [0.01, 0.995])
            shown = np.asarray(figure.axes[7 * axis + 2].images[0].get_array())
            assert shown.mean() == pytest.approx(np.clip((seen - low) / (high - low), 0, 1).mean(), abs=1e-3)


@pytest.mark.skipif(free_memory() is None, reason="the system does not tell")
def test_a_figure_takes_planes_not_volumes():
    grid = Grid.regular((160, 160, 160))
    image = Image(torch.rand(1, 1, *grid.shape), grid)
    transform = Sampled(Displacement(torch.rand(1, 3, *grid.shape), grid), grid)
    small = blob_image(make_grid())
    registration_figure(small, small, Affine.identity(3, dtype=torch.float64))  # imports and fonts do not count
    assert transform.field.isfinite().all()  # scores, image and file of a registration need it too
    with peak_memory() as peak:
        registration_figure(image, image, transform)
    assert peak.bytes < 4 * image.data.numel() * image.data.element_size()
