"""What every transform obeys; a test class inherits it and says how to make one."""

import SimpleITK as sitk
import torch

from learnreg.image import Image
from learnreg.sampling import sample_image
from learnreg.transforms import Affine, Composite, Transform
from learnreg.transforms.files import read_transform, write_transform
from learnreg.transforms.itk import to_itk
from learnreg.warping import warp
from tests.conftest import make_grid, smooth_image

TILT = Affine(torch.tensor([[1.0, 0.1, 0, 0.4], [-0.1, 1, 0, 0.2], [0, 0.05, 0.9, 0], [0, 0, 0, 1]]).double())


class TransformLaws:
    inverse_tolerance = 1e-6  # mm, mean over the interior
    itk_tolerance = 1e-6  # mm

    def make(self, grid) -> Transform:
        raise NotImplementedError

    def interior(self, grid):
        return grid.points[:, 4:-4, 4:-4, 4:-4]

    def test_inverse_undoes(self, grid):
        transform = self.make(grid)
        points = self.interior(grid)
        returned = transform.inverse()(transform(points))
        assert (returned - points).norm(dim=-1).mean() <= self.inverse_tolerance
        assert (transform(points) - points).norm(dim=-1).mean() > 0.1

    def test_map_grid_and_displacement_agree_with_the_call(self, grid):
        transform = self.make(grid)
        mapped = transform(grid.points)
        assert torch.allclose(transform.map_grid(grid), mapped, atol=1e-6)
        assert torch.allclose(transform.displacement(grid).movedim(1, -1), mapped - grid.points, atol=1e-6)

    def test_an_image_is_warped_to_where_the_points_go(self, grid):
        """By whatever way: transforms that are separable on a grid never make its points."""
        transform = Composite((self.make(grid), TILT))
        moving = smooth_image(make_grid(shape=(14, 17, 12), spacing=(2.1, 1.4, 2.0)))
        moving = Image(moving.data, moving.grid, (moving.data > moving.data.median()).double())
        warped, pulled = warp(moving, transform, grid), sample_image(moving, transform.map_grid(grid), grid)
        assert torch.allclose(warped.data, pulled.data, atol=1e-9)
        assert (warped.mask != pulled.mask).double().mean() < 1e-3

    def test_composition_with_the_identity(self, grid):
        transform, identity = self.make(grid), Affine.identity(3, dtype=torch.float64)
        points = self.interior(grid)
        assert torch.allclose(Composite((transform, identity))(points), transform(points), atol=1e-9)
        assert torch.allclose(Composite((identity, transform))(points), transform(points), atol=1e-9)

    def test_itk_maps_the_same_points(self, grid):
        transform = self.make(grid)
        itk = to_itk(transform, grid)
        for index in [(5, 6, 7), (8, 9, 11), (6, 10, 9)]:
            point = grid.points[0][index]
            theirs = torch.tensor(itk.TransformPoint(point.tolist()), dtype=torch.float64)
            assert torch.allclose(transform(point.reshape(1, 1, 3))[0, 0], theirs, atol=self.itk_tolerance)

    def test_a_file_keeps_it(self, grid, tmp_path):
        transform = self.make(grid)
        for name in ("t.h5", "t.nii.gz"):
            write_transform(transform, grid, tmp_path / name)
            again = read_transform(tmp_path / name).to(torch.float64)
            assert torch.allclose(again(self.interior(grid)), transform(self.interior(grid)), atol=1e-3)
        assert isinstance(sitk.ReadTransform(str(tmp_path / "t.h5")), sitk.Transform)

    def test_to_and_detach(self, grid):
        single = self.make(grid).to(torch.float32).detach()
        assert single(grid.points.float()).dtype == torch.float32

    def test_half_precision_does_not_reach_coordinates(self, grid):
        single, points = self.make(grid).to(torch.float32), self.interior(grid).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            automatic = single(points)
            mapped = single.map_grid(grid.to(torch.float32))
        assert automatic.dtype == mapped.dtype == torch.float32
        assert torch.allclose(automatic, self.make(grid).to(torch.float32)(points), atol=1e-3)
        assert torch.allclose(mapped, self.make(grid).map_grid(grid).float(), atol=1e-3)

    def test_a_batch_is_its_members(self):
        grid = make_grid()
        transform, points = self.make(grid), self.interior(grid)
        both = transform(torch.cat([points, points + 1.0]))
        assert torch.allclose(both[1:], transform(points + 1.0), atol=1e-9)
