import numpy as np
import pytest
import torch

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.objective import Objective
from learnreg.optimization import (
    CenterOfMass,
    DenseParametrization,
    Descent,
    FieldStage,
    IntensityAndGradient,
    LinearParametrization,
    LinearStage,
    descend,
    run_stages,
)
from learnreg.optimization.iterative import at_level
from learnreg.sampling import sample_image
from learnreg.similarity import LNCC, MSE, NCC, Similarity
from learnreg.transforms import Affine
from tests.conftest import DIRECTIONS, blob_image, make_grid, smooth_values


def pair(name="LPS", other="RAS", **moving):
    fixed = blob_image(make_grid(name, (20, 22, 28), (1.5, 1.5, 2.0), torch.float32))
    return fixed, blob_image(make_grid(other, (24, 30, 26), (1.4, 1.6, 1.5), torch.float32), **moving)


def test_features_of_a_constant_image_have_a_gradient():
    """The magnitude of a gradient is not differentiable at 0: a template that begins with zeros became NaN."""
    image = torch.zeros(1, 1, 6, 7, 8, requires_grad=True)
    IntensityAndGradient()(Image(image, Grid.regular((6, 7, 8)))).data.sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))


@pytest.mark.parametrize("other", sorted(DIRECTIONS))
def test_center_of_mass_finds_a_shift(other):
    fixed, moving = pair(other=other, center=(3.0, -2.0, 1.0))
    found = CenterOfMass()(fixed, moving).transform
    assert torch.allclose(found.matrix[0, :3, 3], torch.tensor([3.0, -2.0, 1.0]), atol=0.3)


def test_center_of_mass_after_an_initial_transform():
    fixed, moving = pair(center=(3.0, -2.0, 1.0))
    initial = Affine.translation([2.0, 2.0, 2.0])
    total = run_stages([CenterOfMass()], fixed, moving, initial=initial).transform
    assert torch.allclose(total.matrix[0, :3, 3], torch.tensor([3.0, -2.0, 1.0]), atol=0.3)


@pytest.mark.parametrize(("kind", "free"), [("translation", 3), ("rigid", 6), ("similarity", 7), ("affine", 12)])
def test_linear_parametrizations_have_their_degrees_of_freedom(kind, free):
    parameters = LinearParametrization(torch.zeros(1, 3), 30.0, kind)
    assert sum(p.numel() for p in parameters.parameters()) == free
    with torch.no_grad():
        for p in parameters.parameters():
            p.normal_(std=3.0)
    linear = parameters(None, None).matrix[0, :3, :3].detach()
    gram = linear.T @ linear
    if kind in ("translation", "rigid"):
        assert torch.allclose(gram, torch.eye(3), atol=1e-5)
    if kind == "similarity":
        assert torch.allclose(gram, gram[0, 0] * torch.eye(3), atol=1e-5)
    assert torch.linalg.det(linear) > 0


def test_a_rigid_motion_turns_about_its_center():
    center = torch.tensor([[5.0, -3.0, 2.0]])
    parameters = LinearParametrization(center, 30.0, "rigid")
    with torch.no_grad():
        parameters.linear.normal_(std=5.0)
    assert torch.allclose(parameters(None, None)(center[:, None])[:, 0], center, atol=1e-5)


@pytest.mark.parametrize("other", sorted(DIRECTIONS))
def test_affine_recovery(other):
    """Mean error over the fixed grid, mm, before and after."""
    truth = Affine.about(
        torch.tensor([[[1.1, 0.08, 0.0], [-0.1, 0.95, 0.05], [0.0, -0.05, 1.05]]]),
        torch.tensor([[2.0, -1.5, 1.0]]),
        torch.zeros(1, 3),
    )
    fixed_grid = make_grid("LPS", (20, 22, 28), (1.5, 1.5, 2.0), torch.float32)
    moving_grid = make_grid(other, (24, 30, 26), (1.4, 1.6, 1.5), torch.float32)
    fixed = Image(textured(fixed_grid.points), fixed_grid)
    moving = Image(textured(truth.inverse().map_grid(moving_grid)), moving_grid)
    stage = LinearStage(
        Objective(NCC()), "affine", factors=(2, 1), iterations=(100, 60), learning_rate=0.2, tolerance=0.0
    )
    found = run_stages([CenterOfMass(), stage], fixed, moving).transform
    inner = blob_image(fixed_grid).labels[:, 0] > 0
    error = (found.map_grid(fixed.grid) - truth.map_grid(fixed.grid)).norm(dim=-1)[inner].mean()
    before = (fixed.grid.points - truth.map_grid(fixed.grid)).norm(dim=-1)[inner].mean()
    assert before > 2.0
    assert error < 0.4


def textured(points):
    """An ellipsoid with a texture, so that no rotation leaves it as it is."""
    distance = (points / torch.tensor([11.0, 9.0, 8.0])).norm(dim=-1)
    return (torch.sigmoid(6 * (1 - distance)) * (1 + 0.3 * smooth_values(2 * points)))[:, None]


def test_descent_keeps_the_best_iterate_and_can_stop_early():
    fixed, moving = pair(center=(1.0, 0.0, 0.0))
    objective = Objective(MSE())
    images = [Image(i.data, i.grid) for i in (fixed, moving)]
    wild = DenseParametrization(fixed.grid, kind="displacement")
    losses = descend(wild, objective, *images, Descent(30, learning_rate=8.0, tolerance=0))
    assert len(losses) == 30
    kept = float(objective(*images, wild(*images)).total.detach())
    assert kept == pytest.approx(min([*losses, kept]), rel=1e-5)
    calls = []
    calm = DenseParametrization(fixed.grid, kind="displacement")
    losses = descend(calm, objective, *images, Descent(500, 0.3, tolerance=0.05), on_step=calls.append)
    assert len(losses) < 500
    assert sum(calls) == 500


def test_divergence_is_an_error():
    fixed, moving = pair()

    class Broken(Similarity):
        def forward(self, warped, fixed, mask=None):
            return (warped * float("nan")).mean()

    parameters = DenseParametrization(fixed.grid)
    with pytest.raises(ValueError, match="diverged"):
        descend(
            parameters,
            Objective(Broken()),
            Image(fixed.data, fixed.grid),
            Image(moving.data, moving.grid),
            Descent(20, 0.1),
        )


@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
def test_linear_parametrizations_start_from_a_map_of_their_kind(kind):
    made = LinearParametrization(torch.tensor([[5.0, -3.0, 2.0]]), 30.0, kind)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=8.0)
    answer = made(None, None).detach()
    other = LinearParametrization(torch.tensor([[-1.0, 2.0, 4.0]]), 50.0, kind, start=answer)
    assert torch.allclose(other(None, None).matrix, answer.matrix, atol=1e-4)
    if kind != "affine":
        shear = Affine(torch.tensor([[1.0, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
        with pytest.raises(ValueError, match=f"not a {kind} map"):
            LinearParametrization(torch.zeros(1, 3), 30.0, kind, start=shear)
    with pytest.raises(ValueError, match="Unknown linear"):
        LinearParametrization(torch.zeros(1, 3), 1.0, "projective")


def test_stage_failures():
    with pytest.raises(ValueError, match="as many iterations as levels"):
        LinearStage(Objective(LNCC()), factors=(4, 2), iterations=(10,))


def test_2d():
    grid = Grid.regular((40, 44), 1.0)
    fixed, moving = blob_image(grid), blob_image(grid, (4.0, 2.0))
    stage = LinearStage(Objective(NCC()), "rigid", factors=(2, 1), iterations=(60, 30), learning_rate=0.3)
    found = run_stages([stage], Image(fixed.data, grid), Image(moving.data, grid)).transform
    assert torch.allclose(found(torch.zeros(1, 1, 2))[0, 0], torch.tensor([4.0, 2.0]), atol=0.2)


def test_gradient_channel_is_numpys(grid):
    """Magnitude per finest voxel side (1 mm here), doubled: a unit step between two samples counts 1."""
    image = blob_image(grid)
    channels = IntensityAndGradient()(image).data[0]
    spacing = grid.spacing[0].flip(0).tolist()
    gradient = np.stack(np.gradient(image.data[0, 0].numpy(), *spacing))
    assert torch.equal(channels[0], image.data[0, 0])
    assert np.abs(channels[1].numpy() - 2 * np.linalg.norm(gradient, axis=0)).max() < 1e-9
    step = Image((torch.arange(10) >= 5).float().expand(1, 1, 4, 10), Grid.regular((4, 10), 3.0))
    assert float(IntensityAndGradient()(step).data[0, 1].max()) == pytest.approx(1.0)


def test_features_are_matched_and_the_history_says_so():
    fixed, moving = pair(center=(1.5, -1.0, 0.5))
    images = [Image(i.data, i.grid) for i in (fixed, moving)]
    stage = FieldStage(Objective(MSE()), factors=(2,), iterations=(5,), features=IntensityAndGradient())
    history = stage(*images).history[0]
    # Both channels on the grid of the level; the second is the gradient at full resolution, by numpy.
    channels = []
    for image in images:
        spacing = image.grid.spacing[0].flip(0).tolist()
        gradient = np.stack(np.gradient(image.data[0, 0].numpy(), *spacing))
        size = torch.from_numpy(2 * min(spacing) * np.linalg.norm(gradient, axis=0))[None, None]
        both = Image(torch.cat([image.data, size.to(image.data)], 1), image.grid)
        channels.append(at_level(both, 2.0))
    assert history.shape == channels[0].grid.shape
    pulled = sample_image(channels[1], channels[0].grid.points, channels[0].grid)
    expected = (pulled.data - channels[0].data).square().mean()
    assert history.losses[0] == pytest.approx(float(expected), rel=1e-5)


def test_a_rate_that_decreases_ends_at_a_known_shift():
    """A blob, shifted by (1.3, -0.7) samples: found to 0.01 samples."""
    grid = Grid.regular((40, 40))
    shift = torch.tensor([1.3, -0.7])
    blobs = [torch.exp(-(grid.points - c).square().sum(-1) / 50)[:, None] for c in (torch.zeros(2), shift)]
    pair = [Image(blob, grid) for blob in blobs]
    stage = LinearStage(
        Objective(MSE()), "translation", factors=(1,), iterations=(60,), learning_rate=0.3, tolerance=0, final_rate=0.01
    )
    found = stage(*pair).transform(torch.zeros(1, 1, 2))[0, 0]
    assert float(shift.norm()) > 1.4
    assert float((found - shift).norm()) < 0.01


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_final_rate_outside_of_its_range_is_refused(share):
    with pytest.raises(InputError, match=r"final_rate must be in \(0, 1\]"):
        Descent(10, 0.1, final_rate=share)


def test_the_rate_decreases_to_its_share():
    settings = Descent(11, 0.5, final_rate=0.1)
    assert 0.5 * settings.decay**10 == pytest.approx(0.05)
    assert Descent(11, 0.5).decay == 1
