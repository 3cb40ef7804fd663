import pytest
import torch

from learnreg.fields import jacobian_determinant
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks import Pyramid, UNet
from learnreg.networks.base import voxels_to_mm
from learnreg.objective import Objective, Penalty
from learnreg.regularization import Diffusion
from learnreg.similarity import MSE
from learnreg.transforms import Displacement, Velocity
from tests.conftest import blob_image, make_grid


class NetworkLaws:
    def make(self, ndim=3):
        raise NotImplementedError

    @pytest.mark.parametrize("shape", [(16, 16, 16), (17, 23, 30), (48, 20, 9)])
    def test_any_size(self, shape):
        grid = Grid.regular(shape, (1.0, 1.5, 2.0))
        image = Image(torch.rand(2, 1, *shape), grid)
        transform = self.make()(image, image)
        assert transform.displacement(grid).shape == (2, 3, *shape)

    def test_2d(self):
        grid = Grid.regular((33, 40))
        image = Image(torch.rand(1, 1, *grid.shape), grid)
        assert self.make(2)(image, image).displacement(grid).shape == (1, 2, 33, 40)

    def test_starts_close_to_the_identity(self):
        grid = Grid.regular((16, 16, 16))
        image = Image(torch.rand(1, 1, *grid.shape), grid)
        assert self.make()(image, image).displacement(grid).abs().max() < 0.1

    def test_learns_one_pair(self):
        """The objective after 40 steps is well below that at the identity."""
        torch.manual_seed(0)
        grid = make_grid(shape=(16, 18, 20), spacing=(1.5, 1.5, 1.5), dtype=torch.float32)
        fixed, moving = blob_image(grid), blob_image(grid, (2.0, -1.0, 1.0))
        network = self.make()
        objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.001)})
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = objective(fixed, moving, network(fixed, moving)).total
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.4 * losses[0]

    def test_wrong_pairs(self):
        network = self.make()
        flat = Image(torch.rand(1, 1, 16, 16), Grid.regular((16, 16)))
        solid = Image(torch.rand(1, 1, 16, 16, 16), Grid.regular((16, 16, 16)))
        other = Image(torch.rand(1, 1, 16, 16, 20), Grid.regular((16, 16, 20)))
        color = Image(torch.rand(1, 3, 16, 16, 16), solid.grid)
        for pair, message in (
            ((flat, flat), "takes 3-D"),
            ((solid, other), "on one grid"),
            ((color, solid), "1 channel"),
        ):
            with pytest.raises(ValueError, match=message):
                network(*pair)

    def test_every_weight_gets_a_gradient(self):
        grid = Grid.regular((32, 32, 32))
        fixed, moving = blob_image(grid), blob_image(grid, (3.0, 0.0, 0.0))
        network = self.make()
        for _, parameter in network.named_parameters():  # heads start near zero
            torch.nn.init.normal_(parameter, std=0.1)
        Objective(MSE())(fixed, moving, network(fixed, moving)).total.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


class TestUNet(NetworkLaws):
    def make(self, ndim=3):
        return UNet(ndim, (8, 16, 16), steps=4)

    def test_outputs(self):
        grid = Grid.regular((16, 16, 16))
        image = Image(torch.rand(1, 1, *grid.shape), grid)
        assert isinstance(UNet(3, (8, 8))(image, image), Velocity)
        answer = UNet(3, (8, 8), output="displacement")(image, image)
        assert isinstance(answer, Displacement)
        assert answer.grid.shape == (8, 8, 8)
        with pytest.raises(ValueError, match="velocity or displacement"):
            UNet(3, (8,), output="spline")
        with pytest.raises(ValueError, match="ndim 2 or 3"):
            UNet(4)


class TestPyramid(NetworkLaws):
    def make(self, ndim=3):
        return Pyramid(ndim, (8, 16, 16))

    def test_is_diffeomorphic_with_the_negative_as_inverse(self):
        torch.manual_seed(0)
        grid = Grid.regular((32, 32, 32))
        image = blob_image(grid)
        network = Pyramid(3, (8, 8), steps=7)
        for head in network.heads:
            torch.nn.init.normal_(head.conv.weight, std=0.02)
        answer = network(image, blob_image(grid, (3.0, 0.0, 0.0))).detach()
        assert answer.displacement(grid).norm(dim=1).max() > 0.5
        assert jacobian_determinant(answer.displacement(grid), grid).min() > 0


def test_voxels_become_mm_along_the_axes_of_the_grid(grid):
    voxels = torch.zeros(1, 3, *[n // 2 for n in grid.shape], dtype=torch.float64)
    voxels[:, 1] = 2.0
    field, control = voxels_to_mm(voxels, grid)
    expected = 2.0 * grid.affine[0, :3, 1]
    assert torch.allclose(field[0, :, 0, 0, 0], expected)
    assert torch.allclose(control.extent, grid.extent)
