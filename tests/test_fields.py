import numpy as np
import pytest
import scipy.linalg
import SimpleITK as sitk
import torch

from learnreg.fields import (
    channels_first,
    compose,
    exponential,
    invert,
    jacobian_determinant,
    jacobian_matrix,
    logarithm,
)
from learnreg.grid import Grid
from learnreg.io import to_sitk
from learnreg.memory import peak_memory
from tests.conftest import make_grid, smooth_values


def smooth_field(grid, size=1.0):
    return size * torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)[: grid.ndim]], dim=1)


def test_jacobian_of_an_affine_is_its_determinant(grid):
    matrix = torch.tensor([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.05, 0.0, 1.2]], dtype=torch.float64)
    displacement = channels_first(grid.points @ matrix.T - grid.points)
    determinant = jacobian_determinant(displacement, grid)
    assert torch.allclose(determinant, torch.linalg.det(matrix).expand_as(determinant), atol=1e-9)
    assert torch.allclose(jacobian_matrix(displacement, grid)[0, 3, 3, 3], matrix, atol=1e-9)


def test_jacobian_equals_itks():
    grid = make_grid("LPS", dtype=torch.float64)
    field = smooth_field(grid)
    ours = jacobian_determinant(field, grid)[0].numpy()
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(to_sitk(field[0], grid, vector=True)))
    assert np.abs(ours - theirs)[1:-1, 1:-1, 1:-1].max() < 1e-5  # ITK computes in float32


@pytest.mark.parametrize("slab", [1, 300, 1000])
def test_the_determinant_does_not_depend_on_the_slabs(slab, monkeypatch):
    grid = make_grid("oblique", dtype=torch.float64)
    field = smooth_field(grid, 3.0)
    whole = jacobian_determinant(field.clone().requires_grad_(), grid).detach()
    monkeypatch.setattr("learnreg.fields.SLAB", slab)
    assert torch.allclose(jacobian_determinant(field, grid), whole, atol=1e-12)


def test_the_determinant_takes_less_memory_than_its_matrices():
    grid = Grid.regular((208, 208, 208))
    field = torch.zeros(1, 3, *grid.shape)
    with peak_memory() as peak:
        jacobian_determinant(field, grid)
    if peak.bytes is None:
        pytest.skip("this system does not tell the memory of a process")
    assert peak.bytes < 9 * 4 * 208**3


def test_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    grid = Grid.regular((31, 31), dtype=torch.float64)
    generator = torch.tensor([[0.1, -0.3], [0.25, -0.05]], dtype=torch.float64)
    flow = exponential(channels_first(grid.points @ generator.T), grid, steps=10)
    expected = channels_first(grid.points @ torch.from_numpy(scipy.linalg.expm(generator.numpy())).T - grid.points)
    inside = (..., slice(11, 20), slice(11, 20))  # trajectories that stay within the grid
    assert (flow - expected)[inside].abs().max() < 2e-3  # mm; 2^-10 of the first-order step


def test_exponential_and_its_negative_are_inverse(grid):
    velocity = smooth_field(grid, 2.0)
    there, back = exponential(velocity, grid, steps=8), exponential(-velocity, grid, steps=8)
    residual = compose(there, back, grid).norm(dim=1)[:, 3:-3, 3:-3, 3:-3]
    assert residual.mean() < 0.02
    assert there.norm(dim=1).mean() > 0.8


def test_invert_undoes_and_reports_its_residual(grid):
    field = smooth_field(grid, 1.5)
    inverse, residual = invert(field, grid, tolerance=1e-6)
    assert residual.max() < 1e-5
    assert compose(inverse, field, grid).norm(dim=1).max() < 1e-5


def test_gradcheck():
    grid = Grid.regular((4, 3, 4), (1.0, 1.1, 0.9), dtype=torch.float64)
    field = (0.2 * smooth_field(grid) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exponential(v, grid, steps=3), (field,))
    assert torch.autograd.gradcheck(lambda u: jacobian_determinant(u, grid), (field,))
    assert torch.autograd.gradcheck(lambda u: compose(u, u, grid), (field,))


def test_an_axis_of_one_sample_does_not_stretch():
    grid = Grid.regular((1, 5))
    stretched = 0.5 * grid.points.movedim(-1, 1)  # only x varies
    assert torch.allclose(jacobian_determinant(stretched, grid), torch.full((1, 1, 5), 1.5))


def test_logarithm_undoes_the_exponential(grid):
    """Mean in mm over the interior; at the border, beyond which fields stay constant, it comes within 0.1 mm."""
    velocity = torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], dim=1)
    displacement = exponential(velocity, grid, steps=7)
    found, residual = logarithm(displacement, grid, steps=7)
    assert residual.max() < 0.1
    assert (exponential(found, grid, steps=7) - displacement).norm(dim=1).amax() == pytest.approx(float(residual.max()))
    assert (found - velocity).norm(dim=1)[:, 4:-4, 4:-4, 4:-4].mean() < 0.02
