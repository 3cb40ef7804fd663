import pytest
import SimpleITK as sitk
import torch

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.transforms import Affine, Composite, Displacement, Velocity, align_centers, chain
from learnreg.transforms.itk import from_itk, read_transform, to_itk
from tests.conftest import make_grid, smooth_values
from tests.transforms.laws import TransformLaws


def smooth_field(grid, size):
    return size * torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], dim=1)


def an_affine():
    linear = torch.tensor([[1.05, 0.1, -0.05], [-0.08, 0.95, 0.12], [0.03, -0.1, 1.02]], dtype=torch.float64)
    return Affine.about(
        linear[None], torch.tensor([[1.3, -0.6, 0.7]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    )


class TestAffine(TransformLaws):
    def make(self, grid):
        return an_affine()


class TestDisplacement(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Displacement(smooth_field(grid, 1.0), grid)


class TestVelocity(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Velocity(smooth_field(grid, 1.0), grid, steps=8)


class TestComposite(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Composite((Velocity(smooth_field(grid, 1.0), grid, steps=8), an_affine()))


def test_composite_applies_the_first_first():
    shift, double = Affine.translation([1.0, 0.0]), Affine(torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    point = torch.tensor([[[1.0, 1.0]]])
    assert Composite((shift, double))(point).tolist() == [[[4.0, 2.0]]]
    assert shift.then(double)(point).tolist() == [[[4.0, 2.0]]]
    nested = Composite((Composite((shift, double)), shift))
    assert len(nested.transforms) == 3
    assert chain(None, shift) is shift


def test_velocity_inverse_is_the_negative_and_jacobian_stays_positive(grid):
    from learnreg.fields import jacobian_determinant

    velocity = Velocity(smooth_field(grid, 3.0), grid, steps=8)
    assert jacobian_determinant(velocity.displacement(grid), grid).min() > 0
    assert torch.equal(velocity.inverse().field, -velocity.field)


def test_align_centers():
    fixed, moving = make_grid("LPS"), make_grid("oblique", origin=(30.0, -20.0, 5.0))
    assert torch.allclose(align_centers(fixed, moving)(fixed.center[:, None])[:, 0], moving.center)


def test_linear_itk_transforms_are_read():
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    ours = from_itk(euler)
    point = torch.tensor([[[7.0, -8.0, 9.0]]])
    assert torch.allclose(ours(point)[0, 0], torch.tensor(euler.TransformPoint((7.0, -8.0, 9.0))).float(), atol=1e-5)


def test_2d():
    grid = Grid.regular((12, 15), (1.0, 2.0), dtype=torch.float64)
    field = torch.stack([smooth_values(grid.points), smooth_values(grid.points, 1.0)], dim=1)
    transform = chain(Velocity(field, grid), Affine.translation(torch.tensor([1.0, -2.0], dtype=torch.float64)))
    itk = to_itk(transform, grid)
    theirs = torch.tensor(itk.TransformPoint(grid.points[0, 5, 6].tolist()), dtype=torch.float64)
    assert torch.allclose(transform.map_grid(grid)[0, 5, 6], theirs, atol=1e-6)


def test_fields_are_what_penalties_act_on(grid):
    velocity = Velocity(smooth_field(grid, 1.0), grid)
    assert an_affine().fields() == ()
    assert Composite((velocity, an_affine())).fields()[0][0] is velocity.field


def test_failures(tmp_path):
    grid = make_grid()
    with pytest.raises(ValueError, match="Affine.matrix must be"):
        Affine(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="Displacement needs a field"):
        Displacement(torch.zeros(1, 2, *grid.shape), grid)
    with pytest.raises(ValueError, match="at least one transform"):
        Composite(())
    with pytest.raises(ValueError, match="a batch of 2"):
        to_itk(Affine(torch.eye(4).repeat(2, 1, 1)), grid)
    with pytest.raises(FileNotFoundError, match="No such transform"):
        read_transform(tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_text("no transform")
    with pytest.raises(ValueError, match="cannot be read as a transform"):
        read_transform(tmp_path / "bad.h5")


def test_gradcheck():
    grid = Grid.regular((3, 4, 3), dtype=torch.float64)
    field = channels_first(0.1 * grid.points).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: Velocity(v, grid, 2)(grid.points * 0.7 + 0.05), (field,))
    matrix = torch.eye(4, dtype=torch.float64).add(0.01)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: Affine(m)(grid.points), (matrix,))
