import pytest
import SimpleITK as sitk
import torch

from learnreg.grid import Grid
from learnreg.image import Image, crop_to_content, crop_to_view
from learnreg.io import to_sitk
from tests.conftest import blob_image, make_grid


def test_points_are_those_of_itk(grid):
    image = to_sitk(torch.zeros(grid.shape), grid)
    for index in [(0, 0, 0), (3, 5, 7), (19, 16, 13)]:
        expected = torch.tensor(image.TransformIndexToPhysicalPoint(index), dtype=torch.float64)
        assert torch.allclose(grid.points[0][index[::-1]], expected, atol=1e-9)


def test_index_and_normalized_coordinates(grid):
    index = grid.to_index(grid.points)[0]
    assert torch.allclose(index[3, 5, 7], torch.tensor([7.0, 5.0, 3.0], dtype=torch.float64), atol=1e-9)
    normalized = grid.to_normalized(grid.points)[0]
    last = torch.tensor([(2 * (n - 1) + 1) / n - 1 for n in grid.shape[::-1]], dtype=torch.float64)
    assert torch.allclose(normalized[-1, -1, -1], last, atol=1e-9)


def test_resized_keeps_the_field_of_view(grid):
    coarse = grid.resized((7, 6, 5))
    assert torch.allclose(coarse.center, grid.center)
    assert torch.allclose(coarse.extent, grid.extent)
    assert coarse.resized(grid.shape).matches(grid)


@pytest.mark.parametrize("size", range(4, 40))
def test_coarsened_has_one_shape_in_any_orientation(size):
    """4.5 samples are 4 for every direction, though the spacing of an oblique grid carries rounding errors."""
    straight = Grid.regular((size, size + 1, size + 2), spacing=(0.9, 1.1, 0.7))
    generator = torch.Generator().manual_seed(size)
    for _ in range(8):
        rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
        turned = Grid.regular(straight.shape, (0.9, 1.1, 0.7), (3.0, 70.0, -400.0), rotation)
        for factor in (2, 4, 8):
            assert turned.coarsened(factor).shape == straight.coarsened(factor).shape
            assert turned.with_spacing(0.9 * factor).shape == straight.with_spacing(0.9 * factor).shape


def test_coarsened_does_not_depend_on_the_order_of_a_batch():
    grids = [Grid.regular((20, 20), spacing=s) for s in (1.0, 1.5)]
    batch = Grid((20, 20), torch.cat([g.affine for g in grids]))
    swapped = Grid((20, 20), torch.cat([g.affine for g in reversed(grids)]))
    assert batch.with_spacing(2.0).shape == swapped.with_spacing(2.0).shape


def test_coarsened_makes_anisotropic_voxels_more_isotropic():
    grid = Grid.regular((10, 64, 64), (1.0, 1.0, 8.0))
    assert grid.coarsened(4).shape == (10, 16, 16)
    assert grid.coarsened(16).shape == (5, 4, 4)


def test_with_spacing_and_terms_of_itk(grid):
    assert torch.allclose(grid.spacing[0], torch.tensor([1.0, 1.5, 2.5], dtype=torch.float64))
    assert torch.allclose(grid.direction[0].T @ grid.direction[0], torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert grid.with_spacing(2.5).shape == (14, 10, 8)


def test_origin_defaults_to_a_centered_grid():
    assert torch.allclose(Grid.regular((4, 6), 2.0).center, torch.zeros(1, 2))


def test_matches(grid):
    assert grid.matches(Grid(grid.shape, grid.affine.clone()))
    assert not grid.matches(grid.resized((7, 17, 20)))
    moved = grid.affine.clone()
    moved[:, 0, 3] += 0.1
    assert not grid.matches(Grid(grid.shape, moved))


def test_float32_agrees_with_float64():
    exact, single = make_grid("oblique"), make_grid("oblique", dtype=torch.float32)
    assert (exact.points - single.points.double()).abs().max() < 1e-5  # mm, over 50 mm
    assert single.points.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Grid((3,), torch.eye(2)), "2 or 3 positive sizes"),
        (lambda: Grid((3, 4, 5), torch.eye(3)), r"must be \(N, 4, 4\)"),
        (lambda: Grid.regular((3, 4, 5), 0.0), "positive values in mm"),
        (lambda: Grid.regular((3, 4), 1.0, direction=[[1.0, 0.5], [0.0, 1.0]]), "orthonormal"),
        (lambda: make_grid().resized((3, 4)), "3 sizes"),
    ],
)
def test_failures(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_direction_is_itks(grid):
    image = sitk.Image([2, 2, 2], sitk.sitkFloat32)
    image.SetDirection(grid.direction[0].flatten().tolist())  # ITK raises for a matrix that is not orthonormal
    assert len(image.GetDirection()) == 9


def test_cropped_keeps_samples_in_place(grid):
    part = grid.cropped((2, 3, 4), (5, 6, 7))
    assert torch.allclose(part.points, grid.points[:, 2:7, 3:9, 4:11], atol=1e-9)
    with pytest.raises(ValueError, match="needs 3 indices"):
        grid.cropped((1, 2), (3, 4))


def test_an_image_without_its_background(grid):
    """All that stands out stays, with its margin and its place; sizes are multiples where the image has room."""
    image = blob_image(grid, radii=(3.0, 4.0, 3.0), sharpness=4.0)
    part = crop_to_content(Image(image.data, grid), margin=2, multiple=4)
    assert part.data.numel() < image.data.numel()
    assert all(m % 4 == 0 or m == n for m, n in zip(part.grid.shape, grid.shape, strict=True))
    assert float(part.data.clamp(min=0.02).sub(0.02).sum()) == pytest.approx(
        float(image.data.clamp(min=0.02).sub(0.02).sum())
    )
    place = grid.to_index(part.grid.points).round().long()[0]
    assert torch.equal(image.data[0, 0][place[..., 2], place[..., 1], place[..., 0]], part.data[0, 0])
    full = Image(image.data + 0.1, grid)
    assert crop_to_content(full) is full


def test_a_field_of_view_without_what_it_was_enlarged_by():
    """A crop that was padded comes back, in its place; a body before its background keeps it; sides stand alone."""
    grid = make_grid(shape=(20, 22, 24))
    crop = torch.rand(1, 1, 9, 11, 10, dtype=torch.float64) + 5
    enlarged = torch.full((1, 1, 20, 22, 24), -1000.0, dtype=torch.float64)
    enlarged[:, :, 4:13, 0:11, 14:24] = crop
    view = crop_to_view(Image(enlarged, grid))
    assert torch.equal(view.data, crop)
    assert torch.allclose(view.grid.points, grid.points[:, 4:13, 0:11, 14:24])
    body = blob_image(grid, radii=(8.0, 10.0, 18.0), sharpness=4.0)
    body = Image(torch.where(body.data > 0.1, body.data, 0.0), grid)
    assert crop_to_view(body) is body
    cut = torch.where(torch.arange(20)[:, None, None] < 10, body.data, 0.0)  # ends in the middle of the body
    assert crop_to_view(Image(cut, grid), filled=0.4).grid.shape == (10, 22, 24)
    flat = Image(torch.ones(1, 1, 20, 22, 24), grid)
    assert crop_to_view(flat) is flat
