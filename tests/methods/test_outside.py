"""What a method must not take for data: beyond a view, outside a mask, padding; and pairs of different contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

import learnreg
from learnreg import Affine, Grid, Image, InputError, Objective
from learnreg.data.preprocessing import continued, normalized, with_view, without_padding
from learnreg.image import crop_to_content
from learnreg.io import image_from_sitk, read_image
from learnreg.methods import ByContrast, contrast_agreement, load_method
from learnreg.optimization.descent import Best
from learnreg.optimization.iterative import at_level
from learnreg.sampling import resize_image
from learnreg.similarity import L1, LNCC, MIND, MSE, NCC, NGF, SSIM, CorrelationRatio, Huber, MutualInformation
from learnreg.transforms import Displacement

SHIFT = (5.0, -4.0, 4.0)  # mm


def tissue(seed: int = 0, size: int = 60) -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size, size)), 4)
    return (values - values.min()) / np.ptp(values)


def crops(values: np.ndarray, margin: int = 12) -> tuple[Image, Image]:
    """Two views of one volume, full to their borders; the second is moved by SHIFT with SimpleITK."""
    whole = sitk.GetImageFromArray(values.astype(np.float32))
    moved = sitk.Resample(whole, whole, sitk.TranslationTransform(3, [-s for s in SHIFT]), sitk.sitkLinear, 0.0)
    inner = slice(margin, -margin)
    return image_from_sitk(whole[inner, inner, inner]), image_from_sitk(moved[inner, inner, inner])


def error(transform: learnreg.Transform, grid: Grid) -> float:
    inner = (0, slice(None), *[slice(6, -6)] * 3)
    difference = transform.displacement(grid)[inner] - torch.tensor(SHIFT).reshape(3, 1, 1, 1)
    return float(difference.norm(dim=0).mean())


@pytest.mark.parametrize(("method", "bound"), [("rigid", 0.2), ("affine", 0.3), ("deformable", 0.5), ("syn-like", 0.5)])
@pytest.mark.slow
def test_a_shift_of_tissue_that_reaches_the_border_is_found(method, bound):
    fixed, moving = crops(tissue())
    assert error(learnreg.register(fixed, moving, method, progress=False).transform, fixed.grid) < bound


def test_the_old_rule_is_a_choice():
    method = load_method("rigid")
    assert method.prepare(crops(tissue())[0]).mask is not None
    background = learnreg.methods.IterativeMethod(method.stages, outside="background")
    assert background.prepare(crops(tissue())[0]).mask is None
    with pytest.raises(InputError, match="'unknown' or 'background', got 'zeros'"):
        learnreg.methods.IterativeMethod(method.stages, outside="zeros")  # type: ignore[arg-type]


@pytest.mark.slow
def test_values_outside_the_masks_change_nothing():
    fixed, moving = crops(tissue(1))
    mask = torch.zeros_like(fixed.data)
    mask[..., 5:-5, 5:-5, 5:-5] = 1
    plain = replace(fixed, mask=mask), replace(moving, mask=mask)
    noise = torch.rand(fixed.data.shape, generator=torch.Generator().manual_seed(0)) * 50
    changed = [image.with_data(torch.where(mask > 0, image.data, noise)) for image in plain]
    for method in ("affine", "multimodal"):
        first, second = (learnreg.register(*images, method, progress=False).transform for images in (plain, changed))
        assert torch.equal(first.displacement(fixed.grid), second.displacement(fixed.grid))


SIMILARITIES = [MSE(), L1(), Huber(), NCC(), LNCC(5), MIND(), NGF(), SSIM(), MutualInformation(), CorrelationRatio()]


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_out_of_view_is_never_best(similarity, share):
    """Noise, so that the images differ where they are aligned; what is left in view agrees by chance."""
    fixed, moving = crops(tissue(2, 48))
    noisy = moving.data + 0.05 * torch.randn(moving.data.shape, generator=torch.Generator().manual_seed(0))
    moving = Image(noisy, moving.grid, torch.ones_like(noisy))
    objective = Objective(similarity)
    away = float(moving.grid.extent[0, 0]) * (1 - share) + 1e-3
    aligned = objective(fixed, moving, Affine.translation(list(SHIFT))).total
    assert float(objective(fixed, moving, Affine.translation([away, 0.0, 0.0])).total) > float(aligned)


def test_coarse_levels_average_the_masked_voxels():
    image = Image(torch.tensor([1.0, 3.0, 100.0, 7.0]).reshape(1, 1, 1, 4).expand(1, 1, 4, 4), Grid.regular((4, 4)))
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0]).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    coarse = resize_image(replace(image, mask=mask), (2, 2))
    assert coarse.data[0, 0, 0].tolist() == [2.0, 7.0]


def test_quantiles_count_the_mask():
    data = torch.cat([torch.linspace(0, 1, 50), torch.full((50,), 900.0)]).reshape(1, 1, 10, 10)
    image = Image(data, Grid.regular((10, 10)), (data < 100).float())
    low, high = np.quantile(data[data < 100].numpy(), [0.01, 0.995])
    expected = ((data - low) / (high - low)).clamp(0, 1)
    assert torch.allclose(normalized(image).data, expected, atol=1e-6)
    with pytest.raises(InputError, match="mask of image is empty"):
        normalized(replace(image, mask=torch.zeros_like(data)))
    with pytest.raises(InputError, match="constant within its mask"):
        normalized(replace(image, mask=(data > 100).float()))


def test_values_continue_beyond_a_mask_as_scipy_says():
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(1, 1, 9, 8, 7, generator=generator)
    mask = (torch.rand(1, 1, 9, 8, 7, generator=generator) > 0.8).float()
    image = Image(data, Grid.regular((9, 8, 7), spacing=(1.0, 2.0, 3.0)), mask)
    distance = distance_transform_edt(mask[0, 0].numpy() == 0, sampling=(3.0, 2.0, 1.0))
    filled = continued(image).data
    assert torch.equal(filled[mask > 0], data[mask > 0])
    inside = {tuple(i): float(data[0, 0][tuple(i)]) for i in mask[0, 0].nonzero().tolist()}
    for place in (mask[0, 0] == 0).nonzero().tolist()[::20]:
        gaps = {i: np.linalg.norm((np.array(i) - place) * (3.0, 2.0, 1.0)) for i in inside}
        nearest = [inside[i] for i, gap in gaps.items() if gap <= distance[tuple(place)] + 1e-9]
        assert float(filled[0, 0][tuple(place)]) in nearest


def test_only_content_at_the_border_makes_the_view_a_mask():
    values = torch.from_numpy(tissue(3, 24)).float()[None, None]
    grid = Grid.regular((24, 24, 24))
    assert with_view(Image(values, grid)).mask is not None
    framed = torch.nn.functional.pad(values[..., 3:-3, 3:-3, 3:-3], [3] * 6)
    assert with_view(Image(framed, grid)).mask is None


def test_a_mask_of_everything_does_not_keep_the_background():
    data = torch.zeros(1, 1, 32, 32)
    data[..., 12:20, 12:20] = 1
    image = Image(data, Grid.regular((32, 32)), torch.ones_like(data))
    assert crop_to_content(image, margin=0, multiple=1).grid.shape == (8, 8)


class TestPadding:
    def image(self, fill: float) -> Image:
        values = torch.from_numpy(tissue(4, 32)).float()[None, None] * 1500 - 1000
        outside = Grid.regular((32, 32)).points.norm(dim=-1)[0] > 15
        return Image(torch.where(outside, fill, values), Grid.regular((32, 32, 32)))

    def test_a_constant_far_below_the_air_is_masked_out(self):
        found = without_padding(self.image(-3024.0))
        assert torch.equal(found.mask, (found.data > -2000).float())

    @pytest.mark.parametrize("fill", [-1024.0, 0.0])
    def test_air_and_zeros_are_data(self, fill):
        image = self.image(fill)
        assert without_padding(image) is image

    @pytest.mark.slow
    def test_rigid_ignores_it(self):
        fixed, moving = crops(tissue(5) * 1500 - 1000)
        outside = Grid.regular(fixed.grid.shape[1:]).points.norm(dim=-1)[0] > 17
        padded = [image.with_data(torch.where(outside, -3024.0, image.data)) for image in (fixed, moving)]
        assert error(learnreg.register(*padded, "rigid", progress=False).transform, fixed.grid) < 0.3


class TestInitial:
    @pytest.mark.slow
    def test_it_is_not_centered_again(self):
        """The lower half of a volume onto the whole: the centroids lie far apart when both are aligned."""
        fixed, moving = crops(tissue(6))
        half = moving.grid.shape[0] // 2
        part = Image(moving.data[:, :, :half], moving.grid.cropped((0, 0, 0), (half, *moving.grid.shape[1:])))
        for method in ("rigid", "affine"):
            result = learnreg.register(fixed, part, method, initial=Affine.translation(list(SHIFT)), progress=False)
            assert error(result.transform, fixed.grid) < 0.5

    @pytest.mark.parametrize(
        ("initial", "message"),
        [
            (Affine.identity(2), "2-D and the images are 3-D"),
            (Affine.translation([1e5, 0.0, 0.0]), "maps no part of the fixed image into the moving image"),
            (Affine(torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0]))), "singular"),
            (Affine.translation([float("nan"), 0.0, 0.0]), "not finite"),
            (Displacement(torch.full((1, 3, 4, 4, 4), 1e4), Grid.regular((4, 4, 4), spacing=9.0)), "maps no part"),
        ],
    )
    def test_one_that_cannot_be_meant_is_refused(self, initial, message):
        with pytest.raises(InputError, match=message):
            learnreg.register(*crops(tissue(7, 40), 8), "rigid", initial=initial, progress=False)


class TestDivergence:
    def test_the_best_iterate_outlives_a_nan(self):
        parameter = torch.nn.Parameter(torch.zeros(1))
        best = Best([parameter])
        for value, loss in ((1.0, float("nan")), (2.0, 0.5), (3.0, float("nan")), (4.0, 0.7)):
            parameter.data.fill_(value)
            best.offer(torch.tensor(loss))
        best.restore()
        assert float(parameter.detach()) == 2.0

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_it_is_told_also_after_few_iterations(self, ndim):
        class Broken(MSE):
            def forward(self, warped, fixed, mask=None):
                return super().forward(warped, fixed, mask) * float("nan")

        image = Image(torch.rand(1, 1, *[16] * ndim), Grid.regular([16] * ndim))
        stage = learnreg.optimization.LinearStage(Objective(Broken()), factors=(1,), iterations=(3,))
        with pytest.raises(InputError, match="diverged: the loss is nan at evaluation 1"):
            stage(image, image)


class TestContrast:
    @pytest.mark.slow
    def test_the_default_chooses_by_the_pair(self):
        fixed, moving = crops(tissue(8))
        truth = Affine.translation(list(SHIFT))
        negative = moving.with_data((1 - moving.data).square())
        assert contrast_agreement(fixed, moving, truth) > 0.9
        assert contrast_agreement(fixed, negative, truth) < -0.9
        method = load_method("deformable")
        assert isinstance(method, ByContrast)
        result = method(fixed, negative)
        assert error(result.transform, fixed.grid) < 0.6
        assert len(result.history) == 2 + len(method.other.stages["affine"].factors) + 3

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["rigid", "affine"])
    def test_linear_presets_allow_any_contrast(self, method):
        fixed, moving = crops(tissue(9))
        negative = moving.with_data((1 - moving.data).square())
        assert error(learnreg.register(fixed, negative, method, progress=False).transform, fixed.grid) < 0.3

    @pytest.mark.real_data
    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["rigid", "affine"])
    def test_an_aligned_pair_of_t1_and_t2_stays_aligned(self, method, real_data):
        images = [at_level(read_image(real_data / f"multimodal/ms07_{name}.nii.gz"), 2) for name in ("T1", "T2")]
        result = learnreg.register(*images, method, progress=False)
        moved = result.sampled.field.norm(dim=1, keepdim=True)[images[0].data > 0]
        assert float(moved.mean()) < 0.6  # SimpleITK's Mattes information moves it by 0.25 mm


@pytest.mark.parametrize(("name", "most"), [("rigid", 0.05), ("deformable", 0.5)])
def test_an_image_onto_itself_stays(name, most):
    """A round blob up to the border: mutual information without normalization turns it to lose overlap."""
    grid = Grid.regular((20, 22, 24))
    blob = Image(1000 * torch.exp(-grid.points.square().sum(-1) / 40)[:, None], grid)
    moved = learnreg.register(blob, blob, name, progress=False).sampled.field
    assert float(moved.norm(dim=1).max()) < most
