from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch

from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.io import to_sitk
from learnreg.sampling import resample, resize, resize_image, sample, sample_labels
from learnreg.transforms import Affine, Displacement
from learnreg.transforms.itk import to_itk
from learnreg.warping import warp
from tests.conftest import DIRECTIONS, blob_image, make_grid, smooth_image


def random_affine(dtype=torch.float64):
    linear = torch.tensor([[1.05, 0.1, -0.05], [-0.08, 0.95, 0.12], [0.03, -0.1, 1.02]], dtype=dtype)
    return Affine.about(linear[None], torch.tensor([[1.3, -2.1, 0.7]], dtype=dtype), torch.zeros(1, 3, dtype=dtype))


@pytest.mark.parametrize("moving_name", sorted(DIRECTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warp_equals_sitk_resample(grid, moving_name, dtype):
    """Different fixed and moving grids; 1e-5 of the intensity range, as float32 coordinates allow."""
    moving_grid = make_grid(moving_name, shape=(16, 21, 13), spacing=(1.7, 1.1, 2.0), origin=None)
    moving = smooth_image(moving_grid).to(dtype)
    fixed_grid = grid.to(dtype)
    transform = random_affine(dtype)
    ours = warp(moving, transform, fixed_grid).data[0, 0].double().numpy()
    reference = to_sitk(torch.zeros(grid.shape), grid)
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(
            to_sitk(moving.data[0].double(), moving.grid), reference, to_itk(transform, grid), sitk.sitkLinear, 0.0
        )
    )
    spread = float(moving.data.max() - moving.data.min())
    at_border = (ours == 0) != (theirs == 0)  # on which side of the last cell rounding falls
    assert np.abs(ours - theirs)[~at_border].max() <= 1e-5 * spread
    assert at_border.mean() < 0.002


def test_nearest_equals_sitk(grid):
    moving = blob_image(make_grid("RAS", shape=(16, 21, 13), spacing=(1.7, 1.1, 2.0)))
    transform = random_affine()
    ours = warp(moving, transform, grid).labels[0, 0].numpy()
    itk = sitk.GetImageFromArray(moving.labels[0, 0].numpy().astype(np.int16))
    itk.CopyInformation(to_sitk(moving.data[0], moving.grid))
    reference = to_sitk(torch.zeros(grid.shape), grid)
    theirs = sitk.GetArrayFromImage(sitk.Resample(itk, reference, to_itk(transform, grid), sitk.sitkNearestNeighbor, 0))
    assert (ours != theirs).mean() < 1e-3


def test_identity_returns_the_input(grid):
    image = blob_image(grid)
    warped = warp(image, Affine.identity(3, dtype=torch.float64), grid)
    assert torch.allclose(warped.data, image.data, atol=1e-9)
    assert torch.equal(warped.labels, image.labels)


def test_2d_is_the_same_code_path():
    grid = Grid.regular((20, 30), (1.0, 2.0), dtype=torch.float64)
    image = smooth_image(grid)
    moved = warp(image, Affine.translation(torch.tensor([2.0, 1.0], dtype=torch.float64)), grid)
    expected = scipy.ndimage.shift(image.data[0, 0].numpy(), (-0.5, -2), order=1)
    assert np.abs(moved.data[0, 0].numpy() - expected)[1:-2, 1:-3].max() < 1e-9


def test_padding():
    grid = Grid.regular((8, 8), dtype=torch.float64)
    values = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    outside = torch.tensor([[[100.0, 0.0], [3.9, 0.0], [4.1, 0.0]]], dtype=torch.float64)
    assert sample(values, grid, outside).flatten().tolist() == [0.0, 1.0, 0.0]  # half a voxel beyond the last sample
    assert sample(values, grid, outside, padding="border").flatten().tolist() == [1.0, 1.0, 1.0]


def test_labels_where_a_point_is_not_a_number_are_background():
    grid = Grid.regular((8, 8))
    points = torch.tensor([[[0.0, 0.0], [float("nan"), 4.0], [4.0, float("inf")], [float("nan"), float("-inf")]]])
    for mode in ("nearest", "linear"):
        found = sample_labels(torch.ones(1, 1, 8, 8, dtype=torch.int64), grid, points, mode=mode)
        assert found.flatten().tolist() == [1, 0, 0, 0]


def test_depth_is_cut_over_threads_without_changing_the_result():
    grid = Grid.regular((32, 32, 32))
    image, points = torch.rand(1, 2, 32, 32, 32), grid.points + 0.3
    one = sample(image, grid, points)
    torch.set_num_threads(2)
    try:
        assert torch.equal(one, sample(image, grid, points))
    finally:
        torch.set_num_threads(1)


def test_gradcheck():
    grid = Grid.regular((4, 5, 3), (1.0, 1.2, 0.8), dtype=torch.float64)
    values = torch.rand(1, 2, *grid.shape, dtype=torch.float64, requires_grad=True)
    points = (grid.points * 0.6 + 0.111).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: sample(v, grid, p), (values, points))
    assert torch.autograd.gradcheck(lambda v, p: sample(v, grid, p, padding="border"), (values, points))


def test_autocast_does_not_round_coordinates():
    grid = Grid.regular((200, 4, 4))
    values = torch.arange(200.0)[:, None, None].expand(200, 4, 4)[None, None].contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = sample(values, grid, grid.points)
    assert torch.allclose(sampled, values, atol=1e-3)


def test_resize_up_is_torchs_and_down_keeps_the_mean():
    values = torch.rand(1, 2, 6, 7, 8)
    up = torch.nn.functional.interpolate(values, size=(12, 15, 9), mode="trilinear", align_corners=False)
    assert torch.allclose(resize(values, (12, 15, 9)), up, atol=1e-5)
    assert torch.allclose(resize(values, (3, 4, 4)).mean(), values.mean(), atol=1e-6)
    pooled = torch.nn.functional.avg_pool3d(values[..., :6, :], 2)
    assert torch.allclose(resize(values[..., :6, :], (3, 3, 4)), pooled, atol=1e-6)


def test_resized_and_resampled_images_lie_in_the_same_place(grid):
    image = smooth_image(grid)
    coarse = resize_image(image, (10, 12, 14))
    again = resample(image, coarse.grid)
    assert (coarse.data - again.data)[..., 1:-1, 1:-1, 1:-1].abs().max() < 0.05  # one averages, one interpolates


def test_mask_follows_and_counts_the_moving_field_of_view():
    grid = Grid.regular((10, 10))
    image = Image(torch.ones(1, 1, 10, 10), grid, torch.ones(1, 1, 10, 10))
    warped = warp(image, Affine.translation([3.0, 0.0]), grid)
    assert warped.mask[0, 0, 0].tolist() == [1.0] * 7 + [0.0] * 3


def test_displacement_on_another_grid_of_the_same_view_is_interpolated(grid):
    coarse = grid.resized((7, 8, 10))
    field = torch.stack([smooth_image(coarse, s).data[:, 0] for s in (0.0, 1.0, 2.0)], dim=1)
    dense = Displacement(field, coarse)
    by_points = dense(grid.points) - grid.points
    assert torch.allclose(dense.displacement(grid).movedim(1, -1), by_points, atol=1e-6)


def test_failures(grid):
    with pytest.raises(ValueError, match="3-D points"):
        sample(torch.zeros(1, 1, *grid.shape), grid, torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="the grid's shape"):
        sample(torch.zeros(1, 1, 3, 3, 3), grid, grid.points)


def test_linear_labels_are_scipys_maximum(grid):
    labels = torch.randint(0, 4, (1, 1, *grid.shape), generator=torch.Generator().manual_seed(0)) * 7
    points = grid.points + 0.37 * grid.spacing[0]
    ours = sample_labels(labels, grid, points, mode="linear")[0, 0].numpy()
    index = grid.to_index(points)[0].flip(-1).movedim(-1, 0).numpy()
    shares = np.stack(
        [
            scipy.ndimage.map_coordinates((labels[0, 0] == v).double().numpy(), index, order=1, mode="nearest")
            for v in (0, 7, 14, 21)
        ]
    )
    sure = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 1e-6
    inside = ((index >= -0.5) & (index <= np.array(grid.shape).reshape(3, 1, 1, 1) - 0.5)).all(0)
    assert np.array_equal(ours[sure & inside], 7 * shares.argmax(0)[sure & inside])
    assert (ours[~inside] == 0).all()
    assert torch.equal(sample_labels(labels, grid, grid.points, mode="linear"), labels)
    with pytest.raises(ValueError, match="nearest or linear"):
        sample_labels(labels, grid, points, mode="cubic")


def test_landmarks_go_with_the_image(grid):
    image = smooth_image(grid)
    points = grid.points[:, 3, 4, 5:8]
    moving = Image(image.data, grid, landmarks=points)
    shift = Affine.translation(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    assert torch.allclose(warp(moving, shift, grid).landmarks, points - shift.matrix[:, :3, 3])
    known = torch.tensor([[70.0, 1.0]])
    assert torch.equal(warp(replace(moving, covariates=known), shift, grid).covariates, known)
    assert torch.equal(resize_image(moving, (7, 8, 10)).landmarks, points)
    both = stack([moving, Image(image.data, grid, landmarks=points[:, :1])])
    assert both.landmarks.shape == (2, 3, 3)
    assert both.landmarks[1, 1:].isnan().all()
    with pytest.raises(ValueError, match="Image.landmarks must be"):
        Image(image.data, grid, landmarks=points[0])


def test_labels_of_a_coarser_image_are_the_nearest():
    labels = torch.randint(0, 20000, (2, 1, 12, 10, 9))
    image = Image(torch.rand(2, 1, 12, 10, 9), Grid.regular((12, 10, 9), (1.0, 2.0, 3.0)), labels=labels)
    for shape in ((4, 5, 3), (24, 20, 27), (5, 10, 7)):
        found = resize_image(image, shape)
        wanted = torch.nn.functional.interpolate(labels.double(), size=shape, mode="nearest-exact")
        assert torch.equal(found.labels, wanted.long())
        assert found.grid.shape == shape


def test_landmarks_that_are_not_marked_leave_the_gradient_finite():
    grid = make_grid("LPS", (6, 6, 6))
    image = replace(blob_image(grid), landmarks=torch.tensor([[[1.0, 2.0, 3.0], [float("nan")] * 3]], dtype=grid.dtype))
    matrix = torch.eye(4, dtype=grid.dtype)[None].requires_grad_()
    landmarks = warp(image, Affine(matrix), grid).landmarks
    assert landmarks.isnan().all(-1).tolist() == [[False, True]]
    landmarks.nan_to_num().sum().backward()
    assert matrix.grad.isfinite().all()
