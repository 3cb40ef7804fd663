import numpy as np
import pytest
import scipy.interpolate
import SimpleITK as sitk
import torch

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.io import to_sitk
from learnreg.optimization import LinearParametrization
from learnreg.transforms import (
    Affine,
    BSpline,
    Composite,
    Displacement,
    Inverse,
    Kernel,
    Sampled,
    Symmetric,
    Velocity,
    align_centers,
    chain,
    fit_bspline,
    kernel_lattice,
    linear_through_landmarks,
    spline_lattice,
    spline_through_landmarks,
)
from learnreg.transforms.files import read_transform, write_transform
from learnreg.transforms.itk import from_itk, to_itk
from learnreg.transforms.radial_functions import wendland
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid, smooth_image, smooth_values
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


class TestTranslation(TransformLaws):
    kind = "translation"

    def make(self, grid):
        found = LinearParametrization(grid.center, 25.0, self.kind)
        with torch.no_grad():
            found.translation.copy_(torch.tensor([[1.3, -0.6, 0.7]]))
            found.linear.copy_(torch.linspace(-3, 4, found.linear.numel())[None])
        return found(None, None).detach()


class TestRigid(TestTranslation):
    kind = "rigid"


class TestSimilarity(TestTranslation):
    kind = "similarity"


class TestDisplacement(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Displacement(smooth_field(grid, 1.0), grid)


class TestVelocity(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Velocity(smooth_field(grid, 1.0), grid, steps=8)


def smooth_coefficients(lattice, size):
    torch.manual_seed(0)
    return size * torch.randn(1, 3, *lattice.shape, dtype=torch.float64)


class TestBSpline(TransformLaws):
    order = 3

    def make(self, grid):
        lattice = spline_lattice(grid, 7.0, self.order)
        return BSpline(smooth_coefficients(lattice, 0.8), lattice, self.order)

    inverse_tolerance = 2e-4

    def test_evaluations_agree_with_itk_on_any_grid(self, grid):
        """By matrices on its own grid, by gathering elsewhere, and by ITK: one B-spline."""
        spline = self.make(grid)
        itk = to_itk(spline, grid)
        turned = make_grid("oblique" if grid.direction[0].diagonal().prod() == 1 else "LPS", (5, 6, 7), (1.0, 1.0, 1.0))
        assert spline.basis_on(grid) is not None
        assert spline.basis_on(turned) is None
        for where in (grid, turned, grid.resized((9, 11, 13))):
            points = where.points[:, 1:-1, 1:-1, 1:-1]
            ours = spline.map_grid(where)[:, 1:-1, 1:-1, 1:-1]
            assert torch.allclose(ours, spline(points), atol=1e-9)
            for index in [(0, 0, 0), (2, 1, 3)]:
                theirs = torch.tensor(itk.TransformPoint(points[0][index].tolist()), dtype=torch.float64)
                assert torch.allclose(ours[0][index], theirs, atol=1e-6)

    def test_it_is_read_back_as_what_it_is(self, grid, tmp_path):
        spline = self.make(grid)
        write_transform(spline, grid, tmp_path / "t.tfm")
        again = read_transform(tmp_path / "t.tfm")
        assert isinstance(again, BSpline)
        assert again.order == self.order
        assert torch.allclose(again.coefficients, spline.coefficients.float(), atol=1e-5)

    def test_fit_returns_the_spline(self, grid):
        spline = self.make(grid)
        again = fit_bspline(spline.displacement(grid), grid, spline.lattice, self.order)
        assert torch.allclose(again.displacement(grid), spline.displacement(grid), atol=1e-8)

    def test_beyond_the_domain_it_is_constant(self, grid):
        spline = self.make(grid)
        far = grid.points[:, 0, 0, :1] - 100 * grid.affine[:, :3, 0]
        near = grid.points[:, 0, 0, :1] - 0.5 * grid.affine[:, :3, 0]
        assert torch.allclose(spline(far) - far, spline(near) - near, atol=1e-6)


class TestQuadraticBSpline(TestBSpline):
    order = 2


class TestLinearBSpline(TestBSpline):
    order = 1


class TestKernel(TransformLaws):
    smoothness = "C4"
    inverse_tolerance = 2e-4

    def make(self, grid):
        lattice = kernel_lattice(grid, 4)
        return Kernel(smooth_coefficients(lattice, 0.5), lattice, self.smoothness)

    def test_it_is_the_sum_over_all_control_points(self, grid):
        """The convolution on a grid and the gathering elsewhere, against every pair of points."""
        kernel = self.make(grid)
        points = grid.points[:, ::3, ::3, ::3].reshape(-1, 3)
        index = kernel.lattice.to_index(points[None])[0]
        centers = kernel.lattice.to_index(kernel.lattice.points.reshape(1, -1, 3))[0]
        weights = wendland(torch.cdist(index, centers) / 2, self.smoothness)
        expected = points + weights @ kernel.coefficients[0].reshape(3, -1).T
        assert torch.allclose(kernel(points[None])[0], expected, atol=1e-9)
        assert torch.allclose(kernel.map_grid(grid)[:, ::3, ::3, ::3].reshape(-1, 3), expected, atol=1e-9)
        assert kernel.basis_on(grid) is not None
        assert kernel.basis_on(grid.resized((9, 11, 13))) is None


class TestSmootherKernel(TestKernel):
    smoothness = "C6"


class TestRougherKernel(TestKernel):
    smoothness = "C2"


def landmarks(grid, count=12):
    generator = torch.Generator().manual_seed(1)
    fixed = grid.center[:, None] + 12 * torch.randn(1, count, 3, generator=generator, dtype=torch.float64)
    return fixed, fixed + torch.randn(1, count, 3, generator=generator, dtype=torch.float64)


class TestThinPlateSpline(TransformLaws):
    inverse_tolerance = 2e-4

    def make(self, grid):
        return spline_through_landmarks(*landmarks(grid))

    def test_landmarks_meet(self, grid):
        fixed, moving = landmarks(grid)
        assert torch.allclose(self.make(grid)(fixed), moving, atol=1e-8)

    @pytest.mark.parametrize(("ndim", "kernel"), [(2, "thin_plate_spline"), (3, "linear")])
    @pytest.mark.parametrize("smoothing", [0.0, 3.0])
    def test_is_scipys(self, ndim, kernel, smoothing):
        fixed, moving = (x[..., :ndim] for x in landmarks(make_grid()))
        ours = spline_through_landmarks(fixed, moving, smoothing=smoothing)
        theirs = scipy.interpolate.RBFInterpolator(
            fixed[0].numpy(), moving[0].numpy(), kernel=kernel, degree=1, smoothing=smoothing
        )
        points = 15 * torch.randn(1, 40, ndim, dtype=torch.float64)
        assert np.abs(ours(points)[0].numpy() - theirs(points[0].numpy())).max() < 1e-6

    def test_affine_maps_are_free(self):
        fixed, _ = landmarks(make_grid())
        spline = spline_through_landmarks(fixed, an_affine()(fixed))
        assert torch.allclose(spline.affine, an_affine().matrix, atol=1e-8)
        assert spline.coefficients.abs().max() < 1e-8

    def test_a_large_rotation_is_inverted(self):
        fixed, moving = landmarks(make_grid())
        turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        spline = spline_through_landmarks(fixed, moving @ turn.T)
        assert spline.inverse().residual(moving @ turn.T).max() < 1e-3
        assert torch.allclose(spline.inverse()(moving @ turn.T), fixed, atol=1e-3)

    def test_failures(self):
        fixed, moving = landmarks(make_grid())
        with pytest.raises(ValueError, match="come in pairs"):
            spline_through_landmarks(fixed, moving[:, :5])
        with pytest.raises(ValueError, match="at least 4"):
            spline_through_landmarks(fixed[:, :3], moving[:, :3])
        with pytest.raises(ValueError, match="lie in a plane"):
            spline_through_landmarks(fixed * torch.tensor([1.0, 1.0, 0.0]), moving)


class TestWendlandSpline(TransformLaws):
    inverse_tolerance = 2e-4

    def make(self, grid):
        return spline_through_landmarks(*landmarks(grid), kernel="C2", radius=25.0)

    def test_landmarks_meet(self, grid):
        fixed, moving = landmarks(grid)
        assert torch.allclose(self.make(grid)(fixed), moving, atol=1e-8)


def test_wendlands_functions_are_smooth_as_named_and_positive_definite():
    r = torch.linspace(0, 1.5, 3001, dtype=torch.float64)
    points = torch.rand(60, 3, dtype=torch.float64)
    for order, name in ((2, "C2"), (4, "C4"), (6, "C6")):
        values = wendland(r, name)
        assert float(values[0]) == 1
        assert (values[r >= 1] == 0).all()
        derivative = values
        for _ in range(order):  # the last continuous derivative falls to 0 where the support ends
            derivative = torch.gradient(derivative, spacing=(r,))[0]
        near = (r - 1).abs() < 0.01
        assert derivative[near].abs().max() < 0.15 * derivative[r < 0.9].abs().max()
        assert torch.linalg.eigvalsh(wendland(torch.cdist(points, points), name)).min() > 0
    with pytest.raises(ValueError, match="C2, C4 and C6"):
        wendland(r, "C3")


class TestInverse(TransformLaws):
    inverse_tolerance = itk_tolerance = 2e-4  # it stops at 1e-4

    def make(self, grid):
        return Inverse(Displacement(smooth_field(grid, 1.0), grid))

    def test_residual_is_reported(self, grid):
        assert self.make(grid).residual(self.interior(grid)).max() <= 1e-4
        hopeless = Inverse(Displacement(smooth_field(grid, 40.0), grid), iterations=5)
        with pytest.warns(UserWarning, match="The inverse of the transform is off by up to"):
            assert hopeless.residual(self.interior(grid)).max() > 1
        with pytest.warns(UserWarning, match="the transform folds"):
            Displacement(smooth_field(grid, 40.0), grid).inverse()


class TestSymmetric(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Symmetric(
            Velocity(smooth_field(grid, 0.6), grid, steps=8), Velocity(smooth_field(grid, -0.7).flip(1), grid, steps=8)
        )


class TestTimeVarying(TransformLaws):
    inverse_tolerance = 0.02

    def make(self, grid):
        return Composite(
            tuple(
                Velocity(smooth_field(grid, s) * torch.tensor([1.0, s, -s]).reshape(1, 3, 1, 1, 1), grid, steps=6)
                for s in (0.3, 0.5, 0.2)
            )
        )


class TestSampled(TransformLaws):
    """A symmetric map and a linear one, with the field of the first part kept."""

    inverse_tolerance = 0.02

    def make(self, grid):
        return Sampled(Composite((TestSymmetric().make(grid), an_affine())), grid)

    def test_files_and_warped_images_are_those_of_the_map_itself(self, grid, tmp_path):
        sampled = self.make(grid)
        for name in ("t.h5", "t.nii.gz"):
            write_transform(sampled, grid, tmp_path / f"sampled.{name}")
            write_transform(sampled.transform, grid, tmp_path / f"plain.{name}")
        kept, plain = (sitk.ReadTransform(str(tmp_path / f"{name}.t.h5")) for name in ("sampled", "plain"))
        kept, plain = sitk.CompositeTransform(kept), sitk.CompositeTransform(plain)
        assert kept.GetNumberOfTransforms() == plain.GetNumberOfTransforms() == 2
        for k in range(2):
            first, second = kept.GetNthTransform(k), plain.GetNthTransform(k)
            assert first.GetName() == second.GetName()
            assert first.GetParameters() == second.GetParameters()
        kept, plain = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.t.nii.gz"))) for n in ("sampled", "plain")
        )
        assert np.allclose(kept, plain, atol=1e-9)
        moving = smooth_image(make_grid(shape=(14, 17, 12), spacing=(2.1, 1.4, 2.0)))
        assert torch.allclose(warp(moving, sampled, grid).data, warp(moving, sampled.transform, grid).data, atol=1e-9)


class TestMixed(TransformLaws):
    """A part that ITK has no class for, between others that it has one for."""

    inverse_tolerance = 0.02

    def make(self, grid):
        lattice = spline_lattice(grid, 9.0)
        spline = BSpline(smooth_coefficients(lattice, 0.3), lattice)
        return Composite((an_affine(), spline, TestThinPlateSpline().make(grid), an_affine().inverse()))


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


def test_a_mat_file_holds_one_linear_map(tmp_path):
    """ANTs writes and reads its affine maps so."""
    grid = make_grid()
    write_transform(Composite((an_affine(), an_affine())), grid, tmp_path / "0GenericAffine.mat")
    again = read_transform(tmp_path / "0GenericAffine.mat")
    assert isinstance(again, Affine)
    assert torch.allclose(again.matrix, an_affine().then(an_affine()).matrix.float(), atol=1e-4)
    with pytest.raises(ValueError, match="holds one linear transform"):
        write_transform(Velocity(smooth_field(grid, 1.0), grid), grid, tmp_path / "v.mat")
    assert not (tmp_path / "v.mat").exists()


@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.nii.gz"])
def test_ants_resamples_the_same_image(name, tmp_path, grid):
    """B-spline, then affine: 1e-5 of an image in [0, 1], away from the border."""
    ants = pytest.importorskip("ants", reason="antspyx is not installed", exc_type=ImportError)
    lattice = spline_lattice(grid, 7.0)
    transform = chain(BSpline(smooth_coefficients(lattice, 0.8), lattice), an_affine())
    moving = blob_image(make_grid("permuted", (22, 26, 24), (1.4, 1.6, 1.5)))
    for image, file in ((blob_image(grid), "f.nii.gz"), (moving, "m.nii.gz")):
        sitk.WriteImage(to_sitk(image.data[0], image.grid), str(tmp_path / file))
    write_transform(transform, grid, tmp_path / name)
    images = [ants.image_read(str(tmp_path / file)) for file in ("f.nii.gz", "m.nii.gz")]
    theirs = ants.apply_transforms(*images, [str(tmp_path / name)], interpolator="linear").numpy().transpose(2, 1, 0)
    ours = warp(moving, transform, grid).data[0, 0].numpy()
    assert np.abs(ours - theirs)[2:-2, 2:-2, 2:-2].max() < 1e-5


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
    for name, message in (("bad.h5", "is not an HDF5 file"), ("bad.tfm", "cannot be read as a transform")):
        (tmp_path / name).write_text("no transform")
        with pytest.raises(ValueError, match=message):
            read_transform(tmp_path / name)


@pytest.mark.slow
def test_gradcheck():
    grid = Grid.regular((3, 4, 3), dtype=torch.float64)
    field = channels_first(0.1 * grid.points).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: Velocity(v, grid, 2)(grid.points * 0.7 + 0.05), (field,))
    matrix = torch.eye(4, dtype=torch.float64).add(0.01)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: Affine(m)(grid.points), (matrix,))


class TestLinearThroughLandmarks:
    def points(self, ndim=3, count=30):
        generator = torch.Generator().manual_seed(0)
        return 20 * torch.randn(2, count, ndim, generator=generator, dtype=torch.float64)

    @pytest.mark.parametrize(
        ("kind", "theirs"),
        [
            ("rigid", sitk.VersorRigid3DTransform),
            ("affine", sitk.AffineTransform),
        ],
    )
    def test_as_simpleitk(self, kind, theirs):
        fixed = self.points()
        noise = torch.randn(fixed.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        turn = torch.linalg.matrix_exp(torch.tensor([[0, 0.4, -0.2], [-0.4, 0, 0.6], [0.2, -0.6, 0]]).double())
        moving = fixed @ turn.T + torch.tensor([5.0, -3.0, 2.0]).double() + noise
        found = linear_through_landmarks(fixed, moving, kind, ridge=0.0)
        for b in range(2):
            start = theirs() if kind == "rigid" else theirs(3)
            pairs = [p[b].flatten().tolist() for p in (fixed, moving)]
            expected = sitk.LandmarkBasedTransformInitializer(start, *pairs)
            for point in fixed[b, :5]:
                mapped = torch.tensor(expected.TransformPoint(point.tolist())).double()
                assert torch.allclose(found(point.reshape(1, 1, 3))[b, 0], mapped, atol=1e-5)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_a_similarity_is_found_again(self, ndim):
        fixed = self.points(ndim)
        skew = torch.randn(ndim, ndim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        turn = torch.linalg.matrix_exp(skew - skew.T)
        found = linear_through_landmarks(fixed, 1.3 * fixed @ turn.T + 4.0, "similarity")
        assert torch.allclose(found.matrix[:, :ndim, :ndim], (1.3 * turn).expand(2, -1, -1), atol=1e-8)
        assert torch.allclose(found.matrix[:, :ndim, ndim], torch.full((2, ndim), 4.0).double(), atol=1e-8)

    def test_never_mirrors(self):
        fixed = self.points()
        found = linear_through_landmarks(fixed, fixed * torch.tensor([-1.0, 1.0, 1.0]), "rigid")
        assert torch.allclose(torch.linalg.det(found.matrix[:, :3, :3]), torch.ones(2).double())

    def test_what_points_in_a_plane_leave_open_stays(self):
        fixed = self.points() * torch.tensor([1.0, 1.0, 0.0])
        found = linear_through_landmarks(fixed, 1.1 * fixed)
        assert torch.allclose(found.matrix[:, 2, 2], torch.ones(2).double(), atol=1e-6)
        assert torch.allclose(found.matrix[:, 0, 0], 1.1 * torch.ones(2).double(), atol=1e-4)

    def test_errors(self):
        with pytest.raises(ValueError, match="in pairs"):
            linear_through_landmarks(self.points(), self.points(count=3))
        with pytest.raises(ValueError, match="Unknown linear transform"):
            linear_through_landmarks(self.points(), self.points(), "projective")


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_composites_within_composites_are_read(depth):
    spline = sitk.BSplineTransformInitializer(sitk.Image([10, 11, 12], sitk.sitkFloat32), [3, 3, 3])
    spline.SetParameters(np.random.default_rng(0).normal(size=len(spline.GetParameters())).tolist())
    nested = spline
    for _ in range(depth):
        nested = sitk.CompositeTransform([nested])
    points = np.random.default_rng(1).uniform(2, 8, (20, 3))
    ours = from_itk(nested)(torch.from_numpy(points).float()[None])[0].numpy()
    assert np.abs(ours - [spline.TransformPoint(p) for p in points.tolist()]).max() < 1e-4
