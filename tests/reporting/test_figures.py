from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.optimize import linear_sum_assignment

from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.memory import free_memory, peak_memory
from learnreg.optimization import LevelHistory
from learnreg.reporting import objective_figure, registration_figure, save_figure
from learnreg.reporting.planes import Plane, main_axes, planes_of
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
        for row, main in enumerate((2, 1, 0)):
            axis = main_axes(grid).index(main)
            ours = np.asarray(figure.axes[7 * row + 6].images[0].get_array())
            planes = [determinant.select(axis, k).numpy() for k in range(grid.shape[axis])]
            turned = [p for plane in planes for q in (plane, plane.T) for p in (q, q[::-1], q[:, ::-1], q[::-1, ::-1])]
            found = [k for k, p in enumerate(turned) if p.shape == ours.shape and np.allclose(p, ours)]
            assert len(found) == 1
            seen = warped.select(axis, found[0] // 8).numpy()
            low, high = np.quantile(fixed.data.numpy(), [0.01, 0.995])
            shown = np.asarray(figure.axes[7 * row + 2].images[0].get_array())
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


@pytest.mark.parametrize("name", ["LPS", "RAS", "oblique", "permuted"])
def test_directions_and_positions_are_those_of_the_patient(name):
    """The letter at a side of the page is where a point further in that direction is drawn."""
    grid = make_grid(name)
    toward = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    names = set()
    for axis in range(3):
        plane = Plane.through(axis, 3, grid)
        names.add(plane.name)
        center = plane.grid.center[0]
        start, away = plane.on_page(center[None])
        assert away[0] == pytest.approx(0, abs=1e-6)
        for letter, (column, sign) in zip(plane.letters, ((0, -1), (0, 1), (1, -1), (1, 1)), strict=True):
            main, direction = toward[letter]
            point = center.clone()
            point[main] += 3.0 * direction
            assert sign * (plane.on_page(point[None])[0] - start)[0, column] > 0.5
        assert plane.label.endswith(f"= {float(center[main_axes(grid)[axis]]):.1f} mm")
        assert plane.letters[0] == ("A" if plane.name == "sagittal" else "R")  # as a radiologist sees the patient
        assert plane.letters[2] == ("A" if plane.name == "axial" else "S")
    assert names == {"axial", "coronal", "sagittal"}


def test_images_apart_in_space_are_seen(grid):
    fixed = blob_image(grid)
    far = Grid(grid.shape, grid.affine.clone())
    far.affine[:, :3, 3] += 500.0
    moving = replace(blob_image(grid), grid=far)
    transform = Affine.translation(torch.full((3,), 500.0, dtype=grid.dtype))
    figure = registration_figure(fixed, moving, transform)
    assert "centers aligned" in figure.axes[1].get_title()
    for row in range(3):
        assert np.asarray(figure.axes[7 * row + 1].images[0].get_array()).max() > 0.5
        ax = figure.axes[7 * row + 5]
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        points = np.concatenate([line.get_xydata() for line in ax.lines])
        inside = (points > [left, top]).all(axis=1) & (points < [right, bottom]).all(axis=1)
        assert inside.mean() > 0.9


def test_different_contrasts_have_no_difference(grid):
    fixed = blob_image(grid)
    negative = fixed.with_data(1 - fixed.data)
    figure = registration_figure(
        fixed, negative, Affine.identity(3, dtype=grid.dtype), names=("T1 $x", "T2"), same_contrast=False
    )
    first, second, board = (np.asarray(figure.axes[k].images[0].get_array()) for k in (0, 1, 3))
    share = (board == first).mean()
    assert 0.3 < share < 0.7
    assert ((board == first) | (board == second)).all()
    assert "checkerboard" in figure.axes[3].get_title()
    figure.canvas.draw()  # a name with a dollar is no formula


def test_labels_and_landmarks_are_drawn():
    grid = make_grid("RAS")
    points = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 2.0, 1.0], [float("nan")] * 3]], dtype=grid.dtype)
    fixed = replace(blob_image(grid), landmarks=points)
    moving = replace(blob_image(grid, (2.0, 0.0, 0.0)), landmarks=points + torch.tensor([2.0, 0, 0]).to(points))
    transform = Affine.translation(torch.tensor([2.0, 0.0, 0.0], dtype=grid.dtype))
    figure = registration_figure(fixed, moving, transform)
    before, after = figure.axes[1], figure.axes[2]
    for row, plane in enumerate(planes_of(fixed, (0.0, 1.0))):  # an outline per label
        count = len(plane.flat(fixed.labels).unique()) - 1
        assert len(figure.axes[7 * row].collections) == count
        assert len(figure.axes[7 * row + 1].collections) > count

    def lengths(ax):
        return [np.ptp(line.get_xydata(), axis=0).max() for line in ax.lines if len(line.get_xydata()) == 2]

    assert len(lengths(before)) == 2  # one is not marked
    assert lengths(before) == pytest.approx([2.0, 2.0])  # mm, and voxels of 1 mm across
    assert lengths(after) == pytest.approx([0.0, 0.0], abs=1e-4)


def test_stages_have_a_picture_each():
    levels = [("Linear", 8, (1.0, 0.5)), ("Linear", 16, (0.4,)), ("Field", 8, (0.3, 0.2)), ("Field", 16, (0.1, 0.05))]
    figure = objective_figure([LevelHistory(stage, (n, n), losses) for stage, n, losses in levels])
    assert [ax.get_title() for ax in figure.axes] == ["Linear", "Field"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert figure.axes[0].lines[1].get_xdata().tolist() == [2]
    assert objective_figure([]).axes[0].lines[:] == []


@pytest.mark.parametrize("ndim", [2, 3])
def test_each_array_axis_has_the_best_direction(ndim, generator):
    for _ in range(20):
        direction = torch.linalg.qr(torch.randn(ndim, ndim, generator=generator, dtype=torch.float64))[0]
        rows, columns = linear_sum_assignment(-direction.abs().numpy())
        found = main_axes(Grid.regular((6,) * ndim, direction=direction, dtype=torch.float64))
        assert found == [int(rows[list(columns).index(ndim - 1 - axis)]) for axis in range(ndim)]
