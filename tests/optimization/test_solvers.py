"""Optimizers, demons, the discrete search, and where to begin."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import learnreg
from learnreg.fields import image_gradient
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.metrics import dice_scores, folding_fraction, target_registration_error
from learnreg.objective import Objective, Penalty
from learnreg.optimization import (
    Adam,
    CenterOfMass,
    CenterOfView,
    CompositiveParametrization,
    ConvexStage,
    DemonsStage,
    DenseParametrization,
    Descent,
    FieldStage,
    LandmarkStart,
    LargestStep,
    LinearStage,
    LineSearch,
    Moments,
    RotationSearch,
    VectorAdam,
    descend,
    run_stages,
)
from learnreg.optimization.demons import demons_force
from learnreg.optimization.initialization import rotation
from learnreg.regularization import Diffusion
from learnreg.similarity import MSE, NCC
from learnreg.smoothing import gaussian_smoothing
from learnreg.transforms import Affine, align_centers, chain
from learnreg.warping import warp
from tests.conftest import OBLIQUE, blob_image, make_grid, smooth_image, smooth_values
from tests.optimization.test_parametrizations import pair


def images(*both):
    return [Image(i.data, i.grid) for i in both]


def dice(fixed, moving, transform):
    return float(dice_scores(warp(moving, transform, fixed.grid).labels, fixed.labels, [1, 2]).mean())


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (VectorAdam, 0.3),
        (LargestStep, 0.3),
        (LineSearch, 0.5),
        (partial(torch.optim.LBFGS, max_iter=5, line_search_fn="strong_wolfe"), 1.0),
        (partial(torch.optim.SGD, momentum=0.9), 100.0),
    ],
)
def test_any_optimizer_descends(optimizer, rate):
    fixed, moving = pair(center=(1.5, -1.0, 0.5), radii=(7.0, 8.5, 7.0))
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.005)})
    stage = FieldStage(objective, factors=(2,), iterations=(40,), learning_rate=rate, optimizer=optimizer, tolerance=0)
    calls = []
    result = stage(*images(fixed, moving), on_step=calls.append)
    losses = result.history[0].losses
    assert min(losses) < 0.4 * losses[0]
    assert sum(calls) == 40
    assert 40 <= len(losses) < 65  # a search along a line may end beyond the last iteration


def test_a_line_search_never_climbs():
    fixed, moving = pair(center=(1.5, -1.0, 0.5))
    parameters = DenseParametrization(fixed.grid, kind="displacement")
    objective = Objective(MSE())
    optimizer = LineSearch(parameters.parameters(), lr=50.0)  # far too long at first
    values = []

    def closure():
        loss = objective(*images(fixed, moving), parameters(None, None)).total
        if torch.is_grad_enabled():
            optimizer.zero_grad()
            loss.backward()
        return loss

    for _ in range(8):
        values.append(float(optimizer.step(closure).detach()))
    assert sorted(values, reverse=True) == values
    assert values[-1] < 0.7 * values[0]
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()


def test_a_line_search_takes_one_group():
    first, second = (torch.zeros(3, requires_grad=True) for _ in range(2))
    optimizer = LineSearch([first])
    with pytest.raises(ValueError, match="one group of parameters"):
        optimizer.add_param_group({"params": [second]})
    assert len(optimizer.param_groups) == 1


def test_vector_adam_does_not_see_the_axes():
    """Turning all gradients turns the path; Adam by components does not have that."""
    turn = OBLIQUE.float()
    gradients = torch.randn(6, 1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def path(optimizer, matrix):
        field = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
        made = optimizer([field], lr=0.1)
        for g in gradients:
            field.grad = torch.einsum("ij,bj...->bi...", matrix, g)
            made.step()
        return torch.einsum("ji,bj...->bi...", matrix, field.detach())

    assert torch.allclose(path(VectorAdam, turn), path(VectorAdam, torch.eye(3)), atol=1e-5)
    assert not torch.allclose(path(torch.optim.Adam, turn), path(torch.optim.Adam, torch.eye(3)), atol=1e-2)
    assert path(VectorAdam, turn).norm(dim=1).max() <= 6 * 0.1 * 1.5


class TestDemons:
    @pytest.mark.parametrize("force", ["fixed", "moving", "symmetric"])
    def test_recovery(self, force):
        fixed, moving = pair(center=(1.5, -1.0, 0.5), radii=(7.0, 8.5, 7.0))
        found = DemonsStage(force, factors=(2, 1), iterations=(40, 30), fluid=1.0, elastic=0.5)(*images(fixed, moving))
        assert dice(fixed, moving, Affine.identity(3)) < 0.75
        assert dice(fixed, moving, found.transform) > 0.86
        assert float(folding_fraction(found.transform.displacement(fixed.grid), fixed.grid)) == 0
        assert found.history[-1].losses[-1] < found.history[0].losses[0]

    def test_the_force_is_thirions(self):
        difference, g, longest = 0.3, np.array([0.2, -0.1, 0.4]), 0.5
        ours = demons_force(
            torch.tensor(difference).reshape(1, 1, 1, 1, 1), torch.tensor(g).reshape(1, 1, 3, 1, 1, 1), longest
        )
        expected = difference * g / ((g**2).sum() + (difference / (2 * longest)) ** 2)
        assert np.allclose(ours.flatten().numpy(), expected)
        many = demons_force(
            torch.randn(1, 1, 9, 9, 9), torch.randn(1, 1, 3, 9, 9, 9) * torch.rand(1, 1, 1, 9, 9, 9), longest
        )
        assert many.norm(dim=1).max() <= longest + 1e-5

    def test_gradients_are_itks(self, grid):
        """In physical space, whatever the orientation."""
        image = smooth_image(grid)
        theirs = sitk.GetArrayFromImage(sitk.Gradient(_sitk(image), True, True))
        ours = image_gradient(image.data, grid)[0, 0].movedim(0, -1).numpy()
        assert np.abs(ours - theirs)[1:-1, 1:-1, 1:-1].max() < 1e-5

    def test_a_mask_stops_the_force(self):
        grid = Grid.regular((20, 20, 20))
        fixed, moving = blob_image(grid), blob_image(grid, (2.0, 0.0, 0.0))
        nothing = torch.zeros_like(fixed.data)
        stage = DemonsStage(factors=(1,), iterations=(5,), tolerance=0)
        found = stage(Image(fixed.data, grid, nothing), Image(moving.data, grid)).transform
        assert found.displacement(grid).abs().max() == 0

    def test_unknown_force(self):
        with pytest.raises(ValueError, match="Unknown force"):
            DemonsStage("both")


def _sitk(image):
    from learnreg.io import to_sitk

    return to_sitk(image.data[0], image.grid)


class TestConvex:
    def test_a_large_shift_is_found(self):
        """9 mm, more than the structures are wide, and no gradient leads there; mean error in mm inside."""
        grid = Grid.regular((36, 40, 44), 1.5)
        fixed, moving = (textured(grid, c) for c in ((0.0, 0.0, 0.0), (9.0, -6.0, 3.0)))
        found = ConvexStage(spacing=2, reach=4)(fixed, moving).transform
        inside = ((grid.points / 10).norm(dim=-1) < 1)[0]
        error = found.displacement(grid)[0].movedim(0, -1)[inside] - torch.tensor([9.0, -6.0, 3.0])
        assert error.norm(dim=-1).mean() < 2.0  # control points are 3 mm apart; 11.2 mm at the start

    def test_it_goes_on_from_an_initial_transform(self):
        grid = Grid.regular((32, 32, 32), 1.5)
        fixed, moving = (textured(grid, c) for c in ((0.0, 0.0, 0.0), (9.0, -6.0, 3.0)))
        initial = Affine.translation([9.0, -6.0, 3.0])
        found = ConvexStage(spacing=2, reach=2)(fixed, moving, initial).transform
        inside = ((grid.points / 10).norm(dim=-1) < 1)[0]
        assert found.displacement(grid)[0].movedim(0, -1)[inside].norm(dim=-1).mean() < 0.5

    def test_2d_and_other_contrast(self):
        grid = Grid.regular((48, 52))
        fixed, moving = (textured(grid, c) for c in ((0.0, 0.0), (8.0, -6.0)))
        found = ConvexStage(spacing=2, reach=5)(fixed, moving.with_data(1 - moving.data)).transform
        inside = ((grid.points / 10).norm(dim=-1) < 1)[0]
        error = found.displacement(grid)[0].movedim(0, -1)[inside] - torch.tensor([8.0, -6.0])
        assert error.norm(dim=-1).mean() < 2.0

    def test_failures(self):
        with pytest.raises(ValueError, match="at least 1"):
            ConvexStage(reach=0)


def textured(grid, center):
    points = grid.points - torch.tensor(center)
    shape = torch.sigmoid(2 * (10 - points.norm(dim=-1)))
    return Image((shape * (1 + 0.5 * smooth_values(3 * points)))[:, None], grid)


class TestBeginning:
    def bodies(self, degrees, ndim=3):
        """A long body with a head, turned."""
        fixed = Grid.regular((28, 32, 36)[:ndim], 1.5)
        moving = Grid.regular((34, 36, 38)[:ndim], 1.5, [4.0, -30.0, -20.0][:ndim])
        turn = rotation([math.radians(d) for d in degrees], ndim)
        truth = Affine.about(turn, moving.center - fixed.center, fixed.center)

        def body(points):
            scaled = points / torch.tensor([16.0, 9.0, 6.0])[:ndim]
            head = points - torch.tensor([8.0, 2.0, 0.0])[:ndim]
            return torch.sigmoid(5 * (1 - scaled.norm(dim=-1))) + torch.sigmoid(2 * (4 - head.norm(dim=-1)))

        pictures = (
            Image(body(fixed.points)[:, None], fixed),
            Image(body(truth.inverse()(moving.points))[:, None], moving),
        )
        return pictures, truth

    def error(self, found, truth, ndim=3):
        corners = torch.eye(ndim).reshape(1, ndim, ndim) * 10
        return float((found(corners) - truth(corners)).norm(dim=-1).mean())

    @pytest.mark.parametrize(("ndim", "degrees"), [(3, (40.0, -30.0, 100.0)), (2, (160.0,))])
    def test_moments(self, ndim, degrees):
        """mm, 10 mm from the center; a mass alone is more than 10 mm off."""
        (fixed, moving), truth = self.bodies(degrees, ndim)
        objective = Objective(NCC())
        alone = run_stages([CenterOfMass()], fixed, moving).transform
        found = run_stages([Moments(objective, factor=2)], fixed, moving).transform
        assert self.error(alone, truth, ndim) > 5
        assert self.error(found, truth, ndim) < 1.5

    def test_what_is_cut_off_does_not_turn_an_image(self):
        """The principal axes of half a body are others; with a margin they turn what gains clearly only."""
        (fixed, moving), _ = self.bodies((0.0, 0.0, 0.0))
        half = moving.grid.shape[-1] // 2
        cut = Image(
            moving.data[..., half:].contiguous(), moving.grid.cropped((0, 0, half), (*moving.grid.shape[:2], half))
        )
        (_, turned), truth = self.bodies((40.0, -30.0, 100.0))
        careful, plain = (Moments(Objective(NCC()), factor=2, margin=m) for m in (0.3, 0.0))
        alone = CenterOfMass()(fixed, cut).transform
        assert torch.equal(careful(fixed, cut).transform.matrix, alone.matrix)
        assert not torch.allclose(plain(fixed, cut).transform.matrix, alone.matrix, atol=0.1)
        assert self.error(careful(fixed, turned).transform, truth) < 1.5

    @pytest.mark.slow
    @pytest.mark.parametrize("preset", ["fast", "brain", "bspline", "syn-like"])
    def test_presets_without_a_search_find_a_turned_image(self, preset):
        (fixed, moving), truth = self.bodies((40.0, -30.0, 100.0))
        assert self.error(learnreg.load_method(preset)(fixed, moving).transform, truth) < 1.0

    def test_rotation_search(self):
        (fixed, moving), truth = self.bodies((30.0, 0.0, -60.0))
        stages = [CenterOfMass(), RotationSearch(Objective(NCC()), (-60, -30, 0, 30, 60), factor=2)]
        assert self.error(run_stages(stages, fixed, moving).transform, truth) < 1.5

    def test_rotation_search_turns_nothing_that_is_upright(self):
        (fixed, moving), _ = self.bodies((0.0, 0.0, 0.0))
        found = run_stages([CenterOfMass(), RotationSearch(Objective(NCC()), factor=2)], fixed, moving).transform
        alone = run_stages([CenterOfMass()], fixed, moving).transform
        assert torch.equal(found.matrix, alone.matrix)

    def test_center_of_view(self):
        fixed, moving = (
            blob_image(make_grid(n, dtype=torch.float32, origin=o))
            for n, o in (("LPS", None), ("RAS", (9.0, 8.0, 7.0)))
        )
        found = run_stages([CenterOfView()], fixed, moving).transform
        assert torch.allclose(found.matrix, align_centers(fixed.grid, moving.grid).matrix)
        again = run_stages([CenterOfView()], fixed, moving, initial=Affine.translation([5.0, 5.0, 5.0])).transform
        assert torch.allclose(again.matrix, found.matrix, atol=1e-4)


class TestLandmarkStart:
    def pair(self):
        fixed = textured(make_grid(shape=(24, 24, 24), spacing=(1.5, 1.5, 1.5)).to(torch.float32), (0.0, 0.0, 0.0))
        points = 12 * (torch.rand(1, 20, 3, generator=torch.Generator().manual_seed(0)) - 0.5)
        return fixed, points, points + 2 * torch.sin(points.flip(-1) / 5)

    def test_it_meets_the_landmarks_after_what_was_found_before(self):
        fixed, points, moved = self.pair()
        moved[0, 3] = float("nan")
        initial = Affine.translation([1.0, -2.0, 0.5])
        pair = replace(fixed, landmarks=points), replace(fixed, landmarks=moved)
        found = LandmarkStart(factor=1)(*pair, initial).transform
        error = target_registration_error(chain(found, initial), points, moved)[0]
        assert error[:3].max() < 0.3 and error[4:].max() < 0.3 and error[3].isnan()

    def test_images_without_landmarks_stay(self):
        fixed, points, _ = self.pair()
        assert torch.equal(LandmarkStart()(fixed, fixed).transform(points), points)


def test_a_velocity_settles_without_folds():
    grid = Grid.regular((24, 24, 24))
    search = DenseParametrization(grid, coarsening=2, steps=2)
    noise = torch.randn(search.field.shape, generator=torch.Generator().manual_seed(0))
    calm = gaussian_smoothing(5 * noise, search.grid, 6.0)
    with torch.no_grad():
        search.field.copy_(calm + 4 * noise * (search.grid.points.movedim(-1, 1).norm(dim=1, keepdim=True) < 4))
    assert folding_fraction(search(None, None).displacement(grid), grid) > 0
    search.settle()
    assert folding_fraction(search(None, None).displacement(grid), grid) == 0
    far = search.grid.points.norm(dim=-1)[0] > 14
    assert torch.allclose(search.field[0, :, far], calm[0, :, far], atol=1e-3)


def test_descent_with_vector_adam_and_composition_is_a_diffeomorphism():
    fixed, moving = pair(center=(1.5, -1.0, 0.5), radii=(7.0, 8.5, 7.0))
    parameters = CompositiveParametrization(fixed.grid, fluid=1.5, elastic=0.5)
    descend(parameters, Objective(MSE()), *images(fixed, moving), Descent(60, 0.5, tolerance=0, optimizer=VectorAdam))
    transform = parameters(None, None).detach()
    assert dice(fixed, moving, transform) > 0.86
    assert float(folding_fraction(transform.displacement(fixed.grid), fixed.grid)) == 0


def test_a_stage_finds_the_transform_of_one_pair():
    image = Image(torch.rand(2, 1, 16, 16), Grid.regular((16, 16)))
    with pytest.raises(ValueError, match="one pair, got batches of 2 and 2"):
        LinearStage(Objective(MSE()), factors=(1,), iterations=(3,))(image, image)


@pytest.mark.parametrize("method", ["affine", "fast", "syn-like", "demons", "bspline", "convex-adam"])
@pytest.mark.slow
def test_an_initial_transform_of_another_type_is_cast(method):
    image = Image(torch.rand(1, 1, 16, 16, 16), Grid.regular((16, 16, 16)))
    initial = Affine.identity(3, dtype=torch.float64)
    result = learnreg.register(image, image, method, initial=initial, progress=False)
    assert result.transform(image.grid.points).dtype == torch.float32


@pytest.mark.parametrize("settings", [{"lr": 0.3}, {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}])
def test_adam_takes_the_steps_of_torch(settings, generator):
    start = [torch.randn(2, 3, 4, 5, generator=generator), torch.randn(7, generator=generator)]
    ours, theirs = ([x.clone().requires_grad_() for x in start] for _ in range(2))
    both = (Adam(ours, **settings), ours), (torch.optim.Adam(theirs, **settings), theirs)
    for k in range(12):
        for optimizer, parameters in both:

            def loss(optimizer=optimizer, parameters=parameters, k=k):
                optimizer.zero_grad()
                found = (parameters[0].sin() * (k + 1)).sum() + parameters[1 if k % 3 else 0].square().mean()
                found.backward()
                return found

            optimizer.step(loss)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
