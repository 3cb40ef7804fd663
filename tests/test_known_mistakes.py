"""What other registration software is known to get wrong, and what it has to be.

One test for each mistake. Where the software is installed with the package (MONAI), the test also shows
that the mistake is made there, so that it is known when the comparison becomes idle.
"""

import math

import pytest
import SimpleITK as sitk
import torch

from learnreg.fields import channels_first, compose, exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import to_sitk
from learnreg.networks import Pyramid, UNet
from learnreg.objective import Objective
from learnreg.optimization import LinearParametrization
from learnreg.similarity import LNCC, MSE
from learnreg.transforms import Affine, Displacement, Velocity
from learnreg.transforms.files import read_transform, write_transform
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid, smooth_image, smooth_values


def unit_image():
    image = smooth_image(Grid.regular((24, 24, 24)))
    low, high = image.data.min(), image.data.max()
    return (image.data - low) / (high - low)


class TestLocalCorrelationInHalfPrecision:
    """The variance of a window as a difference of large numbers, stabilized by an absolute epsilon."""

    def test_on_images_in_0_1_and_with_an_offset(self):
        image = unit_image()
        expected = float(LNCC()(image, image))
        for offset in (0.0, 1000.0):
            for precision in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype=precision):
                    own, other = (float(LNCC()(x + offset, image + offset)) for x in (image, image.flip(-1)))
                assert own == pytest.approx(expected, abs=2e-3)
                assert own + 0.1 < other <= 1

    def test_monai_makes_the_mistake(self):
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        image = unit_image()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs = float(LocalNormalizedCrossCorrelationLoss(kernel_size=9)(image + 1000, image + 1000))
        assert not -1.001 <= theirs <= 0  # the range of what it returns


class TestAVelocityAtHalfResolution:
    """A velocity that is predicted on a coarser grid, scaled the wrong way round when it is integrated."""

    def test_the_inverse_undoes(self):
        """Mean in voxels, over the interior: what interpolation leaves."""
        fine = Grid.regular((32, 32, 32))
        coarse = fine.resized((16, 16, 16))
        field = torch.stack([3 * smooth_values(coarse.points, s) for s in (0.0, 1.0, 2.0)], dim=1)
        velocity = Velocity(field, coarse)
        there, back = velocity.displacement(fine), velocity.inverse().displacement(fine)
        inner = compose(there, back, fine)[..., 6:-6, 6:-6, 6:-6].norm(dim=1)
        assert there.norm(dim=1).mean() > 1
        assert inner.mean() < 0.05

    def test_resolution_does_not_change_the_flow(self):
        fine = Grid.regular((32, 32, 32))
        coarse = fine.resized((16, 16, 16))
        flows = [
            Velocity(torch.stack([3 * smooth_values(g.points, s) for s in (0.0, 1.0, 2.0)], dim=1), g).displacement(
                fine
            )
            for g in (fine, coarse)
        ]
        assert (flows[0] - flows[1])[..., 4:-4, 4:-4, 4:-4].norm(dim=1).mean() < 0.1


@pytest.mark.parametrize("network", [UNet(channels=(4, 6, 8, 8, 8)), Pyramid(channels=(4, 6, 8, 8, 8))])
@pytest.mark.parametrize("shape", [(48, 48, 48), (33, 20, 41)])
def test_networks_take_any_size(network, shape):
    """Not only multiples of a power of two."""
    grid = Grid.regular(shape)
    image = Image(torch.rand(1, 1, *shape), grid)
    assert network(image, image).map_grid(grid).shape == (1, *shape, 3)


class TestARigidMotion:
    """A rotation in normalized coordinates is a shear on a grid that is no cube, about a center that is mirrored."""

    @pytest.mark.parametrize("shape", [(12, 20, 40), (40, 12, 20)])
    def test_distances_stay_and_the_center_too(self, shape):
        grid = make_grid("oblique", shape, (0.8, 1.5, 3.0), torch.float32, origin=(30.0, -60.0, 15.0))
        center = grid.center + torch.tensor([[5.0, -3.0, 2.0]])
        motion = LinearParametrization(center, 30.0, "rigid")
        with torch.no_grad():
            motion.linear.copy_(torch.tensor([[10.0, -14.0, 8.0]]))
        transform = motion(None, None).detach()
        points = grid.points[0].reshape(-1, 3)[::97]
        before, after = (torch.cdist(p.double(), p.double()) for p in (points, transform(points[None])[0]))
        assert torch.allclose(before, after, atol=1e-3)
        assert torch.allclose(transform(center[:, None])[:, 0], center, atol=1e-4)
        assert (transform(points[None])[0] - points).norm(dim=-1).max() > 5

    def test_it_is_itks_rotation(self):
        angle, center = 0.3, (30.0, -60.0, 15.0)
        motion = LinearParametrization(torch.tensor([center]), 30.0, "rigid")
        with torch.no_grad():
            motion.linear.copy_(torch.tensor([[30.0 * angle, 0.0, 0.0]]))  # the first generator turns about z
        theirs = sitk.Euler3DTransform(center, 0.0, 0.0, angle)
        point = (12.0, -20.0, 7.0)
        ours = motion(None, None)(torch.tensor([[point]]))[0, 0].detach()
        assert torch.allclose(ours, torch.tensor(theirs.TransformPoint(point)).float(), atol=1e-4)


def test_unrelated_noise_does_not_match():
    """A box correlation whose means are taken over the wrong window scores noise as a match."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 24, 24, 24, generator=generator) for _ in range(2))
    assert float(LNCC()(a, b)) > 0.99
    assert float(LNCC()(a, a)) < 0.01
    assert float(LNCC(squared=False)(a, b)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
def test_a_mask_counts_also_when_it_is_given_alone(which):
    grid = Grid.regular((16, 16, 16))
    image, mask = blob_image(grid).data, torch.ones(1, 1, 16, 16, 16)
    mask[..., 10:] = 0
    spoiled = torch.where(mask > 0, image, image + 5)
    identity = Affine.identity(3)
    fixed = Image(image, grid, mask if which in ("fixed", "both") else None)
    moving = Image(spoiled, grid, mask if which in ("moving", "both") else None)
    assert float(Objective(MSE())(fixed, moving, identity).total) == pytest.approx(0, abs=1e-6)
    assert float(Objective(MSE())(Image(image, grid), Image(spoiled, grid), identity).total) > 1


def test_displacements_are_handed_to_itk_in_mm(tmp_path):
    """Not in voxels: on a grid of 0.5 x 2 x 3 mm that turns the axes, ITK resamples the same image."""
    grid = make_grid("permuted", (14, 17, 20), (0.5, 2.0, 3.0), torch.float32)
    transform = Displacement(torch.stack([smooth_values(grid.points, s) for s in (0.0, 1.0, 2.0)], dim=1), grid)
    write_transform(transform, grid, tmp_path / "t.nii.gz")
    field = sitk.ReadImage(str(tmp_path / "t.nii.gz"), sitk.sitkVectorFloat64)
    itk = sitk.DisplacementFieldTransform(field)
    moving = smooth_image(grid)
    theirs = sitk.Resample(to_sitk(moving.data[0], grid), to_sitk(moving.data[0], grid), itk, sitk.sitkLinear, 0.0)
    ours = warp(moving, read_transform(tmp_path / "t.nii.gz"), grid).data[0, 0]
    assert (ours - torch.from_numpy(sitk.GetArrayFromImage(theirs)))[2:-2, 2:-2, 2:-2].abs().max() < 1e-4


def test_squaring_keeps_the_border():
    """With zeros beyond the border a translation of 4 mm comes to a halt there."""
    grid = Grid.regular((12, 12, 12))
    velocity = torch.zeros(1, 3, 12, 12, 12)
    velocity[:, 0] = 4.0
    assert torch.allclose(exponential(velocity, grid), velocity, atol=1e-4)
    turn = torch.tensor([[0.0, -0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ours = exponential(channels_first(grid.points @ turn.T), grid)
    exact = grid.points @ torch.matrix_exp(turn).T - grid.points
    corner = (ours[0, :, 6, 2:-2, 2:-2] - exact[0, 6, 2:-2, 2:-2].movedim(-1, 0)).norm(dim=0)
    assert corner.max() < 0.15  # mm, of displacements of up to 2.8 mm
    assert math.isclose(float(exact[0, 6, 2, 2].norm()), 2.45, abs_tol=0.5)
