import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import torch

import learnreg.regularization
from learnreg.consistency import GradICON, InverseConsistency
from learnreg.fields import channels_first, jacobian_determinant
from learnreg.grid import Grid
from learnreg.regularization import (
    Bending,
    Curvature,
    Diffusion,
    Divergence,
    Elasticity,
    Folding,
    LogJacobian,
    Regularizer,
    Sparsity,
    TotalVariation,
    bending_loss,
    curvature_loss,
    diffusion_loss,
    divergence_loss,
    elasticity_loss,
    folding_loss,
    log_jacobian_loss,
    sparsity_loss,
    total_variation_loss,
)
from learnreg.smoothing import GaussianSmoothing, GraphDiffusion, gaussian_smoothing, graph_diffusion
from learnreg.transforms import Affine, Displacement, Velocity, fit_bspline, spline_lattice
from tests.conftest import DIRECTIONS, make_grid, smooth_values


def wave(grid, wavelength=24.0):
    """Displacement of known energy: ``u_x = sin(k x)``, the others 0."""
    field = torch.zeros(1, grid.ndim, *grid.shape, dtype=grid.dtype)
    field[:, 0] = torch.sin(2 * math.pi / wavelength * grid.points[..., 0])
    return field


def linear(grid, matrix):
    """Displacement ``M x``."""
    return channels_first(grid.points @ torch.tensor(matrix, dtype=grid.dtype).T)


ROTATION = [[0.0, -0.1, 0.05], [0.1, 0.0, -0.2], [-0.05, 0.2, 0.0]]
STRETCH = [[0.2, 0.0, 0.0], [0.0, -0.1, 0.0], [0.0, 0.0, 0.3]]
SHEAR = [[0.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


class RegularizerLaws:
    translations_are_free = True

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

    def test_translations(self, grid):
        field = torch.ones(1, 3, *grid.shape, dtype=grid.dtype) * 3
        energy = float(self.make()(field, grid))
        assert energy == pytest.approx(0, abs=1e-12) if self.translations_are_free else energy > 1

    def test_a_wave_costs(self):
        grid = Grid.regular((24, 24, 24), dtype=torch.float64)
        assert float(self.make()(wave(grid), grid)) > 1e-5
        assert float(self.make()(2 * wave(grid), grid)) > 1.5 * float(self.make()(wave(grid), grid))

    def test_local_weights(self):
        """A constant is a factor; zeros where a field is rough make it free."""
        grid = Grid.regular((9, 10, 11), (1.0, 2.0, 1.5), dtype=torch.float64)
        field = torch.rand(2, 3, *grid.shape, dtype=torch.float64)
        plain, ones = float(self.make()(field, grid)), torch.ones(1, 1, *grid.shape, dtype=torch.float64)
        assert float(self.make()(field, grid, ones)) == pytest.approx(plain)
        assert float(self.make()(field, grid, 3 * ones)) == pytest.approx(3 * plain)
        field[..., 6:] = 0
        ones[..., :8] = 0
        assert float(self.make()(field, grid, ones)) == pytest.approx(0, abs=1e-12)
        random = torch.rand(2, 1, *grid.shape, dtype=torch.float64)
        assert 0 < float(self.make()(field, grid, random)) < float(self.make()(field, grid, torch.ones_like(random)))

    def test_sizes_of_one(self):
        flat = Grid.regular((1, 8, 9), (1.0, 2.0, 5.0))
        assert torch.isfinite(self.make()(torch.rand(1, 3, *flat.shape), flat))

    def test_gradcheck(self):
        grid = Grid.regular((4, 5, 4), (1.0, 2.0, 1.5), dtype=torch.float64)
        field = torch.rand(1, 3, *grid.shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda u: self.make()(u, grid), (field,))

    def test_a_batch_is_the_mean_of_its_members(self):
        grid = Grid.regular((6, 7), (1.0, 2.0), dtype=torch.float64)
        field = torch.rand(2, 2, *grid.shape, dtype=torch.float64)
        each = [float(self.make()(field[i : i + 1], grid)) for i in range(2)]
        assert float(self.make()(field, grid)) == pytest.approx(sum(each) / 2)

    def test_each_pair_of_a_batch_has_its_own_spacing_and_weights(self):
        grids = [Grid.regular((6, 7, 8), s, dtype=torch.float64) for s in ((1.0, 1.5, 1.2), (2.0, 1.0, 3.0))]
        both = Grid(grids[0].shape, torch.cat([grid.affine for grid in grids]))
        field = torch.rand(2, 3, *both.shape, dtype=torch.float64)
        weight = torch.rand(2, 1, *both.shape, dtype=torch.float64)
        for weights in (None, weight, weight[:1]):
            each = [None] * 2 if weights is None else weights.expand(2, -1, -1, -1, -1).split(1)
            parts = zip(field.split(1), grids, each, strict=True)
            apart = sum(float(self.make()(*part)) for part in parts) / 2
            assert float(self.make()(field, both, weights)) == pytest.approx(apart, rel=1e-9)

    @pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_the_value_has_the_type_of_the_field_and_at_least_single_precision(self, kind):
        """A field in half precision is rounded to 3 digits or more, its differences to fewer."""
        for of_grid in (torch.float32, torch.float64):
            grid = Grid.regular((6, 7, 8), (1.0, 1.5, 1.2), dtype=of_grid)
            field, weight = (torch.rand(1, n, *grid.shape, dtype=torch.float64) for n in (3, 1))
            value = self.make()(field.to(kind), grid, weight)
            assert value.dtype == torch.promote_types(kind, torch.float32)
            exact = float(self.make()(field, grid.to(torch.float64), weight))
            assert float(value) == pytest.approx(exact, rel=1e-5 if kind.itemsize > 2 else 0.01)

    def test_a_field_changes_nothing_where_the_weight_of_all_its_cells_is_0(self):
        grid = Grid.regular((9, 10, 11), (1.0, 2.0, 1.5), dtype=torch.float64)
        field, weight = (torch.rand(1, n, *grid.shape, dtype=torch.float64) for n in (3, 1))
        weight[..., :6] = 0
        spoiled = field.clone()
        spoiled[..., :4] = 9 * torch.rand_like(spoiled[..., :4])
        value = float(self.make()(field, grid, weight))
        assert float(self.make()(spoiled, grid, weight)) == pytest.approx(value, rel=1e-9)
        assert float(self.make()(spoiled, grid)) > 1.5 * float(self.make()(field, grid))

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

    def test_local_weights_are_the_integral(self):
        """``w = x`` on ``u = x^2 / 2``: the mean of ``x |u'|^2`` is that of ``x^3``."""
        grid = Grid.regular((4, 400), (1 / 400, 1.0), (0.5 / 400, 0.0), dtype=torch.float64)
        x = grid.points[..., 0][:, None]
        field = torch.cat([x**2 / 2, 0 * x], 1)
        assert float(diffusion_loss(field, grid, x)) == pytest.approx(0.25, rel=1e-2)


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


class TestCurvature(RegularizerLaws):
    def make(self):
        return Curvature()

    def test_closed_form(self):
        grid = Grid.regular((4, 4, 240), 0.1, dtype=torch.float64)
        assert float(curvature_loss(wave(grid), grid)) == pytest.approx((2 * math.pi / 24) ** 4 / 2, rel=0.01)

    def test_affine_and_harmonic_fields_are_free(self, grid):
        assert float(curvature_loss(linear(grid, SHEAR), grid)) == pytest.approx(0, abs=1e-12)
        plane = Grid.regular((9, 11), (1.0, 2.0), dtype=torch.float64)
        x, y = plane.points.unbind(-1)
        saddle = torch.stack([x**2 - y**2, x * y], 1)
        assert float(curvature_loss(saddle, plane)) == pytest.approx(0, abs=1e-9)
        assert float(bending_loss(saddle, plane)) > 1


class TestTotalVariation(RegularizerLaws):
    def make(self):
        return TotalVariation()

    def test_closed_form(self, grid):
        norm = math.sqrt(0.2**2 + 0.1**2 + 0.3**2)
        assert float(total_variation_loss(linear(grid, STRETCH), grid, floor=1e-6)) == pytest.approx(norm, abs=1e-5)

    def test_a_jump_costs_as_much_as_a_ramp(self):
        """That is the point of it: diffusion makes the jump dear."""
        grid = Grid.regular((6, 40), dtype=torch.float64)
        x = grid.points[..., 0]
        zero = torch.zeros_like(x)
        jump, ramp = torch.stack([(x > 0).double(), zero], 1), torch.stack([((x + 10) / 20).clamp(0, 1), zero], 1)
        assert float(total_variation_loss(jump, grid)) == pytest.approx(
            float(total_variation_loss(ramp, grid)), rel=0.03
        )
        assert float(diffusion_loss(jump, grid)) > 15 * float(diffusion_loss(ramp, grid))


class TestAnisotropicTotalVariation(RegularizerLaws):
    def make(self):
        return TotalVariation(isotropic=False)

    def test_closed_form(self):
        energy = total_variation_loss(linear(make_grid(), STRETCH), make_grid(), isotropic=False, floor=1e-6)
        assert float(energy) == pytest.approx(0.6, abs=1e-5)


class TestElasticity(RegularizerLaws):
    def make(self):
        return Elasticity(1.0, 0.5)

    def test_closed_form(self, grid):
        assert float(elasticity_loss(linear(grid, ROTATION), grid, mu=2.0, lam=3.0)) == pytest.approx(0, abs=1e-12)
        assert float(elasticity_loss(linear(grid, SHEAR), grid, mu=2.0, lam=3.0)) == pytest.approx(0.3**2, rel=1e-6)
        stretch = 2.0 * (0.2**2 + 0.1**2 + 0.3**2) + 1.5 * 0.4**2
        assert float(elasticity_loss(linear(grid, STRETCH), grid, mu=2.0, lam=3.0)) == pytest.approx(stretch, rel=1e-6)


class TestDivergence(RegularizerLaws):
    def make(self):
        return Divergence()

    def test_closed_form(self, grid):
        assert float(divergence_loss(linear(grid, STRETCH), grid)) == pytest.approx(0.4**2, rel=1e-6)
        assert float(divergence_loss(linear(grid, SHEAR), grid)) == pytest.approx(0, abs=1e-12)


class TestSparsity(RegularizerLaws):
    translations_are_free = False

    def make(self):
        return Sparsity()

    def test_closed_form(self, grid):
        field = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64).reshape(1, 3, 1, 1, 1).expand(1, 3, *grid.shape)
        assert float(sparsity_loss(field, grid)) == pytest.approx(5, abs=1e-3)


class TestFolding(RegularizerLaws):
    def make(self):
        return Folding(margin=1.0)

    def test_closed_form(self, grid):
        flip = [[-1.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]  # det of the map is -0.5
        assert float(folding_loss(linear(grid, flip), grid)) == pytest.approx(0.5, rel=1e-6)
        assert float(folding_loss(linear(grid, STRETCH), grid)) == 0

    def test_descent_unfolds(self):
        grid = Grid.regular((6, 8, 40), dtype=torch.float64)
        field = (6 * wave(grid)).requires_grad_()
        assert jacobian_determinant(field, grid).min() < -0.5
        optimizer = torch.optim.Adam([field], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            folding_loss(field, grid, margin=0.2).backward()
            optimizer.step()
        assert jacobian_determinant(field.detach(), grid).min() > 0


class TestLogJacobian(RegularizerLaws):
    def make(self):
        return LogJacobian()

    def test_closed_form(self, grid):
        det = 1.2 * 0.9 * 1.3
        assert float(log_jacobian_loss(linear(grid, STRETCH), grid)) == pytest.approx(math.log(det) ** 2, rel=1e-6)
        angle = 0.4
        turn = [[math.cos(angle) - 1, -math.sin(angle), 0], [math.sin(angle), math.cos(angle) - 1, 0], [0, 0, 0]]
        assert float(log_jacobian_loss(linear(grid, turn), grid)) == pytest.approx(0, abs=1e-9)

    def test_growth_and_shrinkage_cost_the_same(self, grid):
        double, half = ([[f - 1, 0, 0], [0, f - 1, 0], [0, 0, f - 1]] for f in (2.0, 0.5))
        assert float(log_jacobian_loss(linear(grid, double), grid)) == pytest.approx(
            float(log_jacobian_loss(linear(grid, half), grid)), rel=1e-6
        )


def test_every_public_regularizer_has_laws():
    public = (getattr(learnreg.regularization, name) for name in learnreg.regularization.__all__)
    public = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Regularizer)}
    assert public - {Regularizer} == {type(laws().make()) for laws in RegularizerLaws.__subclasses__()}


@pytest.mark.parametrize("name", [Diffusion, Bending, Curvature, Elasticity, TotalVariation, Divergence, Sparsity])
def test_on_control_points_it_means_what_it_means_on_the_field(name):
    """Control points every 3 mm against the B-spline on voxels of 1 mm, of a wave of 32 mm: within 15 %."""
    grid = Grid.regular((36, 36, 36), dtype=torch.float64)
    spline = fit_bspline(wave(grid, 32.0), grid, spline_lattice(grid, 3.0))
    coefficients, lattice = spline.fields()[0]
    field = spline.displacement(grid)
    assert float(name()(coefficients, lattice)) == pytest.approx(float(name()(field, grid)), rel=0.15)


class TestConsistency:
    def test_a_map_and_its_inverse_are_consistent(self, grid):
        velocity = Velocity(torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], 1), grid, steps=8)
        for loss in (InverseConsistency(), GradICON()):
            assert float(loss(velocity, velocity.inverse(), grid)) < 1e-3
            assert float(loss(velocity, velocity, grid)) > 1e-2

    def test_closed_form(self, grid):
        there = Affine.translation(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
        back = Affine.translation(torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
        assert float(InverseConsistency()(there, back, grid)) == pytest.approx(2**2 + 1)
        assert float(GradICON()(there, back, grid)) == pytest.approx(0, abs=1e-12)
        stretch = Displacement(linear(grid, STRETCH), grid)
        assert float(GradICON()(stretch, back, grid)) == pytest.approx(0.2**2 + 0.1**2 + 0.3**2, rel=1e-6)

    def test_gradients_reach_both(self):
        grid = make_grid()
        fields = [torch.rand(1, 3, *grid.shape, dtype=torch.float64).requires_grad_() for _ in range(2)]
        InverseConsistency()(*(Velocity(f, grid) for f in fields), grid).backward()
        assert all(f.grad.abs().sum() > 0 for f in fields)


class TestSmoothing:
    def test_gaussian_is_scipys(self):
        grid = Grid.regular((20, 24, 28), (1.0, 2.0, 0.5), dtype=torch.float64)
        field = torch.rand(1, 3, *grid.shape, dtype=torch.float64)
        ours = gaussian_smoothing(field, grid, 1.5)
        sigma = (1.5 / 0.5, 1.5 / 2.0, 1.5 / 1.0)
        ones = scipy.ndimage.gaussian_filter(np.ones(grid.shape), sigma, mode="constant", truncate=12)
        theirs = scipy.ndimage.gaussian_filter(field[0, 1].numpy(), sigma, mode="constant", truncate=12) / ones
        assert np.abs(ours[0, 1].numpy() - theirs).max() < 1e-9
        assert gaussian_smoothing(field, grid, 0.0) is field
        with pytest.raises(ValueError, match="at least 0 mm"):
            gaussian_smoothing(field, grid, -1.0)

    def test_graph_diffusion_is_scipys_solution(self):
        grid = Grid.regular((6, 7), (1.0, 2.0), dtype=torch.float64)
        image, field = torch.rand(1, 1, 6, 7, dtype=torch.float64), torch.rand(1, 2, 6, 7, dtype=torch.float64)
        index = np.arange(42).reshape(6, 7)
        laplacian = scipy.sparse.lil_matrix((42, 42))
        flat = image[0, 0].numpy().ravel()
        for a, b, h in [(index[1:], index[:-1], 2.0), (index[:, 1:], index[:, :-1], 1.0)]:
            for i, j in zip(a.ravel(), b.ravel(), strict=True):
                w = math.exp(-((flat[i] - flat[j]) ** 2) / (2 * 0.3**2)) / h**2
                laplacian[i, i] += w
                laplacian[j, j] += w
                laplacian[i, j] -= w
                laplacian[j, i] -= w
        system = (scipy.sparse.eye(42) + 1.5**2 / 2 * laplacian).tocsc()
        ours = graph_diffusion(field, grid, image, sigma=1.5, edge=0.3, tolerance=1e-10)
        for c in range(2):
            theirs = scipy.sparse.linalg.spsolve(system, field[0, c].numpy().ravel()).reshape(6, 7)
            assert np.abs(ours[0, c].numpy() - theirs).max() < 1e-8

    def test_graph_diffusion_stops_at_edges(self):
        grid = Grid.regular((12, 20), dtype=torch.float64)
        right = (grid.points[..., 0] > 0).double()[:, None]
        field = torch.cat([right, 0 * right], 1)
        sharp = GraphDiffusion(4.0, edge=0.1)(field, grid, right)
        blurred = GaussianSmoothing(4.0)(field, grid, right)
        assert (sharp - field).abs().max() < 1e-6
        assert (blurred - field).abs().max() > 0.3
        with pytest.raises(ValueError, match="edge > 0"):
            graph_diffusion(field, grid, right, sigma=1.0, edge=0.0)
