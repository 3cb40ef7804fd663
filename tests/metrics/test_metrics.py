import numpy as np
import pytest
import scipy.ndimage
import torch

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.image import label_values
from learnreg.metrics import (
    average_surface_distance,
    dice_scores,
    folding_fraction,
    hausdorff95,
    inverse_consistency,
    non_diffeomorphic_volume,
    robustness30,
    sd_log_jacobian,
    sd_log_jacobian_learn2reg,
    surface_dice,
    target_registration_error,
)
from learnreg.transforms import Affine, Velocity
from tests.conftest import blob_image, make_grid
from tests.test_fields import smooth_field


def test_dice_scores():
    a = torch.tensor([[[[0, 1, 1, 2, 2, 2]]]])
    b = torch.tensor([[[[0, 0, 1, 2, 2, 3]]]])
    scores = dice_scores(a, b, [1, 2, 9])[0]
    assert scores[:2].tolist() == pytest.approx([2 / 3, 0.8])
    assert scores[2].isnan()
    assert label_values(a, b) == [1, 2]
    with pytest.raises(ValueError, match="one shape"):
        dice_scores(a, b[..., :3], [1])


def test_hausdorff95_against_distances_by_scipy(grid):
    a, b = blob_image(grid).labels, blob_image(grid, (4.0, 0.0, 0.0)).labels

    def border(m):
        return m & ~scipy.ndimage.binary_erosion(m)

    x, y = border((a[0, 0] > 1).numpy()), border((b[0, 0] > 1).numpy())
    spacing = grid.spacing[0].flip(0).tolist()
    to_y, to_x = (scipy.ndimage.distance_transform_edt(~m, sampling=spacing) for m in (y, x))
    expected = max(np.percentile(to_y[x], 95), np.percentile(to_x[y], 95))
    assert float(hausdorff95(a, b, grid, [2])[0, 0]) == pytest.approx(expected, rel=1e-6)
    assert float(hausdorff95(a, a, grid, [1])[0, 0]) == 0
    assert hausdorff95(a, b, grid, [9]).isnan().all()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI calls its own deprecated argument
def test_hausdorff95_against_monai(grid):
    from monai.metrics import compute_hausdorff_distance

    torch.manual_seed(0)
    maps = [torch.randint(0, 40, (2, 1, 4, 5, 6)).repeat_interleave(3, 2).repeat_interleave(2, 4) for _ in range(2)]
    values = [2**33 + 7, 39, 3]  # any order, any size
    maps = [m.where(m != 5, values[0]) for m in maps]
    shape = tuple(maps[0].shape[2:])
    grid = Grid.regular(shape, spacing=(0.5, 2.0, 1.5))
    found = hausdorff95(*maps, grid, values)
    for k, value in enumerate(values):
        spacing = grid.spacing[0].flip(0).tolist()
        one_hot = [m == value for m in maps]
        expected = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
        torch.testing.assert_close(found[:, k], expected[:, 0].float(), rtol=1e-5, atol=1e-5)


def test_rigid_motions_are_smooth(grid):
    angle = torch.tensor(0.3, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    displacement = channels_first(grid.points @ rotation.T + 3.0 - grid.points)
    assert float(sd_log_jacobian(displacement, grid)) == pytest.approx(0, abs=1e-9)
    assert float(folding_fraction(displacement, grid)) == 0


def test_folding_is_counted():
    grid = Grid.regular((4, 40), dtype=torch.float64)
    displacement = torch.zeros(1, 2, 4, 40, dtype=torch.float64)
    displacement[:, 0, :, :20] = -2 * grid.points[:, :, :20, 0]  # a mirrored half
    assert float(folding_fraction(displacement, grid)) == pytest.approx(0.5, abs=0.05)


def test_learn2reg_sdlogj_is_its_published_formula():
    """Central differences by scipy in voxels, 2 voxels cut off, as the challenge's code has it."""
    grid = Grid.regular((12, 13, 14), dtype=torch.float64)
    field = smooth_field(grid, 1.5)
    voxels = field[0].flip(0).numpy()  # components (z, y, x)
    kernel = np.array([-0.5, 0, 0.5])
    gradient = np.stack(
        [np.stack([scipy.ndimage.correlate1d(voxels[c], kernel, axis=a) for a in range(3)]) for c in range(3)]
    )
    jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    inner = np.linalg.det(jacobian)[2:-2, 2:-2, 2:-2]
    expected = np.log(np.clip(inner + 3, 1e-9, 1e9)).std()
    assert float(sd_log_jacobian_learn2reg(field, grid)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="too few"):
        sd_log_jacobian_learn2reg(torch.zeros(1, 2, 4, 9), Grid.regular((4, 9)))


def test_target_registration_error():
    fixed = torch.rand(1, 5, 3)
    shift = Affine.translation([3.0, 0.0, 4.0])
    assert torch.allclose(target_registration_error(shift, fixed, fixed), torch.full((1, 5), 5.0))
    assert torch.allclose(target_registration_error(shift, fixed, shift(fixed)), torch.zeros(1, 5), atol=1e-6)
    with pytest.raises(ValueError, match="in pairs"):
        target_registration_error(shift, fixed, fixed[:, :3])


def test_inverse_consistency():
    grid = make_grid()
    velocity = Velocity(smooth_field(grid, 1.0), grid, steps=8)
    consistent = float(inverse_consistency(velocity, velocity.inverse(), grid))
    assert consistent < 0.05
    assert float(inverse_consistency(velocity, velocity, grid)) > 10 * consistent


@pytest.mark.parametrize("values", [[0, 1, 7], [0, 2**40, 3], [-1, 4]])
def test_values_of_any_size_are_found(values):
    labels = torch.tensor(values)[
        torch.randint(len(values), (1, 1, 9, 8, 7), generator=torch.Generator().manual_seed(0))
    ]
    assert label_values(labels) == sorted(set(values) - {0})


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI calls its own deprecated argument
@pytest.mark.parametrize("tolerance", [0.0, 0.8, 2.0])
def test_surfaces_against_monai(tolerance):
    from monai.metrics import compute_average_surface_distance, compute_surface_dice

    torch.manual_seed(1)
    maps = [torch.randint(0, 4, (2, 1, 4, 5, 6)).repeat_interleave(3, 2).repeat_interleave(2, 4) for _ in range(2)]
    grid = Grid.regular(tuple(maps[0].shape[2:]), spacing=(0.5, 2.0, 1.5))
    spacing = grid.spacing[0].flip(0).tolist()
    shares = surface_dice(*maps, grid, [1, 3], tolerance=tolerance)
    averages = average_surface_distance(*maps, grid, [1, 3])
    for k, value in enumerate([1, 3]):
        one_hot = [m == value for m in maps]
        share = compute_surface_dice(*one_hot, [tolerance], include_background=True, spacing=spacing)
        average = compute_average_surface_distance(*one_hot, include_background=True, symmetric=True, spacing=spacing)
        torch.testing.assert_close(shares[:, k], share[:, 0].float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(averages[:, k], average[:, 0].float(), rtol=1e-5, atol=1e-5)


def test_surfaces_of_missing_labels():
    there, nowhere = torch.ones(1, 1, 4, 4, dtype=torch.long), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    grid = Grid.regular((4, 4))
    assert float(surface_dice(there, nowhere, grid, [1])) == 0
    assert surface_dice(nowhere, nowhere, grid, [1]).isnan().all()
    assert average_surface_distance(there, nowhere, grid, [1]).isnan().all()
    with pytest.raises(ValueError, match="at least 0 mm"):
        surface_dice(there, there, grid, [1], tolerance=-1)


def reference_ndv(trans):
    """Non-diffeomorphic volume in voxels per inner sample, from volumes of tetrahedra; ``trans`` is (x, y, z, 3)."""
    total, inner = 0.0, np.array(trans.shape[:3]) - 2
    for x, y, z in np.ndindex(*inner):
        p = trans[x : x + 3, y : y + 3, z : z + 3].astype(np.float64)
        center = p[1, 1, 1]
        for sx, sy, sz in np.ndindex(2, 2, 2):
            a, b, c = p[2 * sx, 1, 1], p[1, 2 * sy, 1], p[1, 1, 2 * sz]
            sign = (2 * sx - 1) * (2 * sy - 1) * (2 * sz - 1)
            total += max(0.0, -sign * np.dot(np.cross(a - center, b - center), c - center) / 6)
        for s, sign in ((0, -1), (2, 1)):
            a, b, c = p[s, s, 1] - center, p[1, s, s] - center, p[s, 1, s] - center
            total += max(0.0, -sign * np.dot(np.cross(a, b), c) / 6)
    return total / 2 / inner.prod()


def test_non_diffeomorphic_volume_of_a_map_with_folds(grid):
    torch.manual_seed(2)
    displacement = 1.5 * torch.randn(2, 3, *grid.shape, dtype=grid.dtype)
    found = non_diffeomorphic_volume(displacement, grid)
    for k in range(2):
        points = grid.to_index(grid.points + displacement[k : k + 1].movedim(1, -1))[0]
        assert float(found[k]) == pytest.approx(reference_ndv(points.permute(2, 1, 0, 3).numpy()), rel=1e-4)
    assert float(non_diffeomorphic_volume(torch.zeros_like(displacement), grid).abs().max()) < 1e-6


def test_non_diffeomorphic_volume_against_its_authors_package():
    authors = pytest.importorskip("digital_diffeomorphism.core")
    torch.manual_seed(3)
    grid = Grid.regular((7, 8, 9))
    displacement = torch.randn(1, 3, *grid.shape)
    trans = (grid.to_index(grid.points + displacement.movedim(1, -1))[0]).permute(2, 1, 0, 3).numpy()
    mask = np.zeros(trans.shape[:3])
    mask[1:-1, 1:-1, 1:-1] = 1  # the package repeats the border, the challenge leaves it out
    expected = authors.ndv(trans.astype(np.float32), mask=mask)[1]
    assert 100 * float(non_diffeomorphic_volume(displacement, grid)) == pytest.approx(expected, rel=1e-4)


def test_non_diffeomorphic_volume_refuses_a_slice():
    with pytest.raises(ValueError, match="3 samples"):
        non_diffeomorphic_volume(torch.zeros(1, 2, 2, 9), Grid.regular((2, 9)))


def test_robustness_is_of_the_worst_cases():
    values = np.linspace(0, 1, 101).tolist()
    assert robustness30(values) == pytest.approx(0.7)
    assert robustness30([*values, float("nan")], lower_is_better=False) == pytest.approx(0.3)
    assert np.isnan(robustness30([]))
