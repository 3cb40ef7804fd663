"""Single slices: their plane, and transforms between planes in space."""

import math

import pytest
import SimpleITK as sitk
import torch

import learnreg
from learnreg import Affine, Grid, Image
from learnreg.fields import jacobian_determinant
from learnreg.io import to_sitk
from learnreg.transforms import Displacement
from learnreg.transforms.in_plane import InPlane, Plane, flattened, is_slice, lifted
from tests.conftest import make_grid


def slice_of(grid: Grid, axis: int) -> Grid:
    first, shape = [0, 0, 0], list(grid.shape)
    first[axis], shape[axis] = 3, 1
    return grid.cropped(first, shape)


def turned() -> Affine:
    c, s = math.cos(0.2), math.sin(0.2)
    return Affine(torch.tensor([[c, -s, 1.0], [s, c, -2.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_keeps_positions(axis):
    grid = slice_of(make_grid("oblique", (8, 9, 10), (1.0, 1.5, 2.0), torch.float32), axis)
    plane = Plane.of(grid)
    flat = plane.flat_grid(grid)
    assert is_slice(grid)
    assert flat.shape == tuple(n for n in grid.shape if n > 1)
    back = flat.points @ plane.basis.mT + plane.height * plane.normal
    assert torch.allclose(back.squeeze(0), grid.points.squeeze(0).squeeze(axis), atol=1e-4)


def test_an_affine_map_is_lifted_and_flattened():
    grid = slice_of(make_grid("oblique", (8, 9, 10), (1.0, 1.5, 2.0), torch.float32), 0)
    plane = Plane.of(grid)
    flat, whole = turned(), lifted(turned(), plane, plane)
    assert isinstance(whole, Affine)
    assert torch.allclose(whole(grid.points), InPlane(flat, plane, plane)(grid.points), atol=1e-4)
    assert torch.allclose(flattened(whole, plane, plane).matrix, flat.matrix, atol=1e-4)
    assert torch.allclose(whole.inverse()(whole(grid.points)), grid.points, atol=1e-3)


def test_the_determinant_of_a_slice_is_that_of_its_plane():
    flat = Grid.regular((9, 10))
    field = 0.3 * torch.rand(1, 2, *flat.shape)
    grid = Grid.regular((1, 9, 10))
    plane = Plane.of(grid)
    displacement = InPlane(Displacement(field, plane.flat_grid(grid)), plane, plane).displacement(grid)
    assert torch.allclose(jacobian_determinant(displacement, grid)[:, 0], jacobian_determinant(field, flat), atol=1e-4)


@pytest.mark.parametrize("method", ["rigid", "fast"])
def test_slices_are_registered_in_their_plane_and_itk_applies_the_result(method, tmp_path):
    grid = Grid.regular((1, 40, 44), spacing=(1.0, 1.0, 5.0), origin=(3.0, 4.0, 50.0))
    x, y, _ = (grid.points - grid.center)[0].unbind(-1)

    def blob(dx, dy):
        bumps = torch.exp(-((x - dx) ** 2 / 60 + (y - dy) ** 2 / 40)) + torch.exp(
            -((x - dx - 8) ** 2 + (y - dy) ** 2) / 9
        )
        return Image(1000 * bumps[None, None], grid)

    result = learnreg.register(blob(0, 0), blob(3, -2), method, progress=False)
    middle = result.transform(grid.center[:, None]) - grid.center[:, None]
    assert torch.allclose(middle.flatten(), torch.tensor([3.0, -2.0, 0.0]), atol=0.3)
    result.save_transform(tmp_path / "t.h5")
    fixed, moving = (to_sitk(image.data[0], image.grid) for image in (result.fixed, result.moving))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.ReadTransform(str(tmp_path / "t.h5")), sitk.sitkLinear)
    )
    assert abs(theirs - result.warped.data[0, 0].numpy()).max() < 20


def test_a_slice_and_a_volume_are_refused():
    images = [Image(torch.rand(1, 1, n, 16, 16), Grid.regular((n, 16, 16))) for n in (1, 16)]
    with pytest.raises(ValueError, match="One image is a single slice and the other a volume"):
        learnreg.register(*images, "rigid", progress=False)
