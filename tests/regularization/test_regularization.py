import math

import pytest
import torch

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.regularization import Bending, Diffusion, bending_loss, diffusion_loss
from tests.conftest import DIRECTIONS


def wave(grid, wavelength=24.0):
    """Displacement of known energy: ``u_x = sin(k x)``, the others 0."""
    field = torch.zeros(1, grid.ndim, *grid.shape, dtype=grid.dtype)
    field[:, 0] = torch.sin(2 * math.pi / wavelength * grid.points[..., 0])
    return field


class RegularizerLaws:
    def make(self):
        raise NotImplementedError

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.5), (0.5, 1.0, 2.0)])
    def test_energy_does_not_depend_on_the_sampling(self, spacing):
        """A few percent: finite differences of a wave sampled at least 24 times."""
        coarse = Grid.regular((48, 48, 48), 1.0, dtype=torch.float64)
        fine = Grid.regular([round(48 / s) for s in spacing[::-1]], spacing, dtype=torch.float64)
        first, second = (float(self.make()(wave(g), g)) for g in (coarse, fine))
        assert second == pytest.approx(first, rel=0.04)

    def test_energy_does_not_depend_on_the_orientation(self):
        values = torch.rand(1, 3, 6, 7, 8, dtype=torch.float64)
        energies = [
            float(
                self.make()(
                    torch.einsum("ij,bj...->bi...", d, values),
                    Grid.regular((6, 7, 8), (1.0, 2.0, 3.0), direction=d, dtype=torch.float64),
                )
            )
            for d in DIRECTIONS.values()
        ]
        assert max(energies) == pytest.approx(min(energies), rel=1e-9)

    def test_translations_are_free(self, grid):
        field = torch.ones(1, 3, *grid.shape, dtype=grid.dtype) * 3
        assert float(self.make()(field, grid)) == pytest.approx(0, abs=1e-12)

    def test_gradcheck(self):
        grid = Grid.regular((4, 5, 4), (1.0, 2.0, 1.5), dtype=torch.float64)
        field = torch.rand(1, 3, *grid.shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda u: self.make()(u, grid), (field,))

    def test_a_batch_is_the_mean_of_its_members(self):
        grid = Grid.regular((6, 7), (1.0, 2.0), dtype=torch.float64)
        field = torch.rand(2, 2, *grid.shape, dtype=torch.float64)
        each = [float(self.make()(field[i : i + 1], grid)) for i in range(2)]
        assert float(self.make()(field, grid)) == pytest.approx(sum(each) / 2)

    def test_autocast(self):
        grid = Grid.regular((6, 7, 8))
        field = torch.rand(1, 3, *grid.shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(self.make()(field.bfloat16(), grid)) == pytest.approx(
                float(self.make()(field, grid)), rel=0.05
            )


class TestDiffusion(RegularizerLaws):
    def make(self):
        return Diffusion()

    def test_closed_form(self):
        grid = Grid.regular((4, 4, 240), 0.1, dtype=torch.float64)  # one period along x
        expected = (2 * math.pi / 24) ** 2 / 2
        assert float(diffusion_loss(wave(grid), grid)) == pytest.approx(expected, rel=0.01)


class TestBending(RegularizerLaws):
    def make(self):
        return Bending()

    def test_closed_form(self):
        grid = Grid.regular((4, 4, 240), 0.1, dtype=torch.float64)
        expected = (2 * math.pi / 24) ** 4 / 2
        assert float(bending_loss(wave(grid), grid)) == pytest.approx(expected, rel=0.01)

    def test_mixed_derivatives_count_twice(self):
        grid = Grid.regular((20, 20), dtype=torch.float64)
        field = torch.zeros(1, 2, 20, 20, dtype=torch.float64)
        field[:, 0] = grid.points[..., 0] * grid.points[..., 1]  # d2/dxdy = 1
        assert float(bending_loss(field, grid)) == pytest.approx(2.0)

    def test_affine_maps_are_free(self, grid):
        matrix = torch.tensor([[0.1, 0.2, 0.0], [-0.1, -0.1, 0.3], [0.05, 0.0, 0.2]], dtype=torch.float64)
        assert float(bending_loss(channels_first(grid.points @ matrix.T), grid)) == pytest.approx(0, abs=1e-12)
