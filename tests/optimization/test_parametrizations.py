"""What every parametrization of a deformation obeys."""

from functools import partial

import pytest
import torch

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.metrics import dice_scores, folding_fraction
from learnreg.objective import Objective, Penalty
from learnreg.optimization import (
    BSplineParametrization,
    CompositiveParametrization,
    DenseParametrization,
    FieldStage,
    KernelParametrization,
    SelfSimilarity,
    ShootingParametrization,
    SymmetricParametrization,
    TimeVaryingParametrization,
    shoot,
)
from learnreg.optimization.dense import folded, unfolded
from learnreg.regularization import Diffusion
from learnreg.similarity import LNCC, MSE
from learnreg.smoothing import GraphDiffusion, gaussian_smoothing
from learnreg.transforms import Affine, BSpline, Displacement, Symmetric, Velocity
from learnreg.transforms.itk import to_itk
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid, smooth_values

GREEDY = partial(CompositiveParametrization, fluid=1.5, elastic=0.5)
ALL = {
    "velocity": partial(DenseParametrization, kind="velocity"),
    "displacement": partial(DenseParametrization, kind="displacement"),
    "bspline": BSplineParametrization,
    "bspline 2": partial(BSplineParametrization, order=2),
    "bspline 1": partial(BSplineParametrization, order=1),
    "bspline velocity": partial(BSplineParametrization, kind="velocity"),
    "kernel C2": partial(KernelParametrization, smoothness="C2"),
    "kernel C4": KernelParametrization,
    "kernel velocity": partial(KernelParametrization, kind="velocity", smoothness="C6"),
    "compositive": GREEDY,
    "compositive, along edges": partial(CompositiveParametrization, smoothing=GraphDiffusion(0.5, edge=0.2)),
    "time-varying": TimeVaryingParametrization,
    "shooting": ShootingParametrization,
    "symmetric": SymmetricParametrization,
    "symmetric, compositive": partial(SymmetricParametrization, side=GREEDY),
}
DIFFEOMORPHIC = {name for name in ALL if any(k in name for k in ("velocity", "compositive", "time", "shoot", "symm"))}
STEPS = {"shooting": 4.0}  # a momentum is longer than the velocity that a Gaussian makes of it


def pair(name="LPS", other="RAS", **moving):
    fixed = blob_image(make_grid(name, (20, 22, 28), (1.5, 1.5, 2.0), torch.float32))
    return fixed, blob_image(make_grid(other, (24, 30, 26), (1.4, 1.6, 1.5), torch.float32), **moving)


def randomized(parameters, size=1.0):
    """Smooth random parameters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in parameters.parameters():
            waves = torch.nn.functional.interpolate(
                torch.randn(p.shape[0], p.shape[1], *[3] * (p.ndim - 2)), p.shape[2:], mode="trilinear"
            )
            p.copy_(size * waves)
    for module in parameters.modules():
        if isinstance(module, CompositiveParametrization):
            module.composed.copy_(module.field.detach())
    return parameters


@pytest.mark.parametrize("name", ALL)
def test_it_starts_at_the_identity(name):
    grid = make_grid("oblique", dtype=torch.float32)
    transform = ALL[name](grid, None)(None, None)
    assert torch.allclose(transform.map_grid(grid), grid.points, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_recovery(name):
    """Dice of both structures before and after; no folds where none are possible; the inverse undoes."""
    fixed, moving = pair(center=(1.5, -1.0, 0.5), radii=(7.0, 8.5, 7.0))
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.005)})
    stage = FieldStage(
        objective, ALL[name], factors=(2, 1), iterations=(60, 40), learning_rate=0.3 * STEPS.get(name, 1.0)
    )
    result = stage(*(Image(i.data, i.grid) for i in (fixed, moving)))
    before = dice_scores(warp(moving, Affine.identity(3), fixed.grid).labels, fixed.labels, [1, 2]).mean()
    after = dice_scores(warp(moving, result.transform, fixed.grid).labels, fixed.labels, [1, 2]).mean()
    assert before < 0.75
    assert after > 0.84
    assert len(result.history) == 2
    if name in DIFFEOMORPHIC:
        assert float(folding_fraction(result.transform.displacement(fixed.grid), fixed.grid)) == 0
    inner = fixed.grid.points[:, 4:-4, 4:-4, 4:-4]
    returned = result.transform.inverse()(result.transform(inner))
    assert (returned - inner).norm(dim=-1).mean() < 0.1  # mm, of voxels of 1.5 mm


@pytest.mark.parametrize("name", ALL)
def test_a_finer_level_goes_on_from_the_same_map(name):
    """Mean change in mm; the map moves points by 1 mm and more."""
    grid = make_grid("permuted", dtype=torch.float32, shape=(16, 20, 24), spacing=(1.0, 1.5, 1.2))
    finer = grid.resized((32, 40, 48))
    coarse = randomized(ALL[name](grid, None), STEPS.get(name, 1.0) * 1.5)
    before = coarse(None, None).detach().map_grid(finer)
    after = coarse.refined(finer)(None, None).map_grid(finer)
    moved = (before - finer.points).norm(dim=-1).mean()
    assert moved > 0.7
    assert (after - before).norm(dim=-1).mean() < 0.05 * moved


@pytest.mark.parametrize("name", sorted(set(ALL) - {"shooting", "symmetric", "symmetric, compositive"}))
def test_it_starts_from_a_network_s_velocity_and_from_a_displacement(name):
    grid = make_grid(dtype=torch.float32, shape=(20, 24, 28), spacing=(1.0, 1.0, 1.0))
    field = 1.5 * torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], dim=1)
    velocity = Velocity(field, grid, 6)
    expected = velocity.displacement(grid)
    for start in (velocity, Displacement(expected, grid)):
        made = ALL[name](grid, start)(None, None).displacement(grid)
        inner = (made - expected)[..., 3:-3, 3:-3, 3:-3].norm(dim=1)
        assert inner.mean() < 0.1 * expected.norm(dim=1).mean()


@pytest.mark.parametrize("name", ["symmetric", "symmetric, compositive"])
def test_a_symmetric_search_shares_a_velocity_out(name):
    grid = make_grid(dtype=torch.float32, shape=(20, 24, 28), spacing=(1.0, 1.0, 1.0))
    field = 1.5 * torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], dim=1)
    velocity = Velocity(field, grid, 6)
    made = ALL[name](grid, velocity)(None, None)
    error = (made.displacement(grid) - velocity.displacement(grid))[..., 4:-4, 4:-4, 4:-4].norm(dim=1)
    assert error.mean() < 0.05
    again = ALL[name](grid, made)(None, None)
    assert torch.allclose(again.moving_side.displacement(grid), made.moving_side.displacement(grid), atol=0.05)
    with pytest.raises(ValueError, match="cannot start from a Displacement"):
        ALL[name](grid, Displacement(field, grid))


@pytest.mark.parametrize("name", ALL)
def test_itk_maps_the_same_points(name):
    """0.05 mm: of a symmetric map both sides are sampled."""
    grid = make_grid("oblique", dtype=torch.float32, shape=(16, 20, 24), spacing=(1.0, 1.5, 1.2))
    transform = randomized(ALL[name](grid, None), STEPS.get(name, 1.0))(None, None).detach()
    itk = to_itk(transform, grid)
    for index in [(5, 6, 7), (8, 9, 11), (6, 10, 9)]:
        point = grid.points[0][index]
        theirs = torch.tensor(itk.TransformPoint(point.double().tolist())).float()
        assert torch.allclose(transform(point.reshape(1, 1, 3))[0, 0], theirs, atol=0.05)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.slow
def test_2d(name):
    grid = Grid.regular((36, 40), 1.0)
    fixed, moving = blob_image(grid), blob_image(grid, (1.5, -1.0), (8.0, 8.5))
    stage = FieldStage(
        Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.005)}),
        ALL[name],
        factors=(2, 1),
        iterations=(30, 20),
        learning_rate=0.3 * STEPS.get(name, 1.0),
    )
    history = stage(Image(fixed.data, grid), Image(moving.data, grid)).history
    assert min(history[-1].losses) < 0.2 * history[0].losses[0]


def test_a_symmetric_objective_does_not_care_which_image_is_fixed():
    grid = make_grid(dtype=torch.float32)
    fixed, moving = (Image(blob_image(grid, c).data, grid) for c in ((0.0, 0.0, 0.0), (2.0, -1.0, 0.5)))
    transform = randomized(SymmetricParametrization(grid))(None, None).detach()
    objective = Objective(LNCC(5), {"diffusion": Penalty(Diffusion(), 0.1)})
    there, back = objective(fixed, moving, transform), objective(moving, fixed, transform.inverse())
    assert isinstance(transform.inverse(), Symmetric)
    assert float(there.total) == pytest.approx(float(back.total), rel=1e-4)


def test_a_velocity_that_cannot_come_near_says_so():
    grid = make_grid(dtype=torch.float32)
    folded = Displacement(-3 * grid.points.movedim(-1, 1), grid)
    with pytest.raises(ValueError, match="No stationary velocity comes nearer"):
        DenseParametrization(grid, folded)


def test_a_linear_displacement_is_met_by_cubic_splines():
    """Splines of every order hold linear maps exactly."""
    grid = make_grid("permuted", dtype=torch.float64)
    matrix = torch.tensor([[0.1, 0.05, 0.0], [0.0, -0.1, 0.02], [0.03, 0.0, 0.05]], dtype=torch.float64)
    start = Displacement((grid.points @ matrix.T).movedim(-1, 1), grid)
    for order in (1, 2, 3):
        made = BSplineParametrization(grid, start, order=order)(None, None)
        assert isinstance(made, BSpline)
        assert torch.allclose(made.displacement(grid), start.field, atol=1e-6)


def test_the_energy_of_a_geodesic_stays():
    """``<m, K m>`` is what the Euler-Poincare equation conserves; 2 % with 20 steps and differences."""
    grid = Grid.regular((40, 40), 1.0, dtype=torch.float64)
    bump = torch.exp(-((grid.points - torch.tensor([-4.0, 1.0])) ** 2).sum(-1) / 18)
    momentum = torch.stack([8 * bump, 3 * bump], dim=1)
    velocities, last = shoot(momentum, grid, 4.0, intervals=20)

    def energy(m):
        return float((m * gaussian_smoothing(m, grid, 4.0)).sum())

    assert energy(last) == pytest.approx(energy(momentum), rel=0.02)
    assert (last - momentum).norm() > 0.3 * momentum.norm()  # while the momentum itself goes elsewhere
    assert torch.allclose(velocities[0], gaussian_smoothing(momentum, grid, 4.0), atol=0.1)


def test_self_similarity_as_features():
    fixed, moving = pair(center=(1.5, -1.0, 0.5))
    images = [Image(i.data, i.grid) for i in (fixed, Image(1 - moving.data, moving.grid))]
    stage = FieldStage(Objective(MSE()), factors=(1,), iterations=(40,), features=SelfSimilarity())
    losses = stage(*images).history[0].losses
    assert losses[-1] < 0.6 * losses[0]


def test_failures():
    grid = make_grid(dtype=torch.float32)
    with pytest.raises(ValueError, match="Unknown field"):
        DenseParametrization(grid, kind="spline")
    with pytest.raises(ValueError, match="at least one interval"):
        TimeVaryingParametrization(grid, intervals=0)
    with pytest.raises(ValueError, match="cannot start from a transform"):
        ShootingParametrization(grid, Affine.identity(3))
    with pytest.raises(ValueError, match="positive sigma"):
        ShootingParametrization(grid, sigma=0.0)


class TestSettling:
    def folded_velocity(self):
        generator = torch.Generator().manual_seed(0)
        return 12 * torch.randn(1, 3, 12, 12, 12, generator=generator)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_a_dense_velocity_has_no_folds_afterwards(self, symmetric):
        grid = Grid.regular((24, 24, 24))
        make = SymmetricParametrization if symmetric else DenseParametrization
        parametrization = make(grid)
        with torch.no_grad():
            for parameter in parametrization.parameters():
                parameter.copy_(torch.nn.functional.interpolate(self.folded_velocity(), parameter.shape[2:]))
        sides = [side for side in parametrization().sides() if side is not None]
        assert max(float(folding_fraction(side.displacement(grid), grid)) for side in sides) > 0.01
        parametrization.settle()
        sides = [side for side in parametrization().sides() if side is not None]
        assert len(sides) == 1 + symmetric
        assert max(float(folding_fraction(side.displacement(grid), grid)) for side in sides) == 0

    def test_folds_that_stay_are_told(self):
        grid = Grid.regular((12, 12, 12))
        with pytest.warns(UserWarning, match="The deformation folds at .* samples also after smoothing"):
            unfolded(self.folded_velocity(), grid, grid, steps=3, iterations=1)

    def test_a_determinant_that_is_nan_is_a_fold(self):
        grid = Grid.regular((8, 8))
        field = torch.zeros(1, 2, 8, 8)
        field[0, 0, 4, 4] = torch.nan
        assert bool(folded(Displacement(field, grid), grid).any())
