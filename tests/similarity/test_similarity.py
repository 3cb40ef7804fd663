import gc
import itertools
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import skimage.metrics
import torch

from learnreg.grid import Grid
from learnreg.similarity import (
    L1,
    LNCC,
    MIND,
    MSE,
    NCC,
    NGF,
    SSIM,
    CorrelationRatio,
    FeatureSimilarity,
    Huber,
    Mixture,
    MutualInformation,
    correlation_ratio_loss,
    dice_loss,
    huber_loss,
    lncc_loss,
    mutual_information_loss,
    ncc_loss,
    ngf_loss,
    one_hot,
    self_similarity,
    structural_similarity,
)
from learnreg.terms import Weighted
from tests.conftest import make_grid, smooth_image
from tests.similarity.laws import SimilarityLaws, noise


class TestMSE(SimilarityLaws):
    def make(self):
        return MSE()

    def test_is_numpys(self):
        a, b = torch.rand(1, 1, 5, 6, 7), torch.rand(1, 1, 5, 6, 7)
        assert float(MSE()(a, b)) == pytest.approx(float(np.mean((a.numpy() - b.numpy()) ** 2)), rel=1e-5)


class TestNCC(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny"}
    bounded_by = 2

    def make(self):
        return NCC()

    def test_is_numpys_correlation(self):
        a, b = torch.rand(1, 1, 5, 6, 7), torch.rand(1, 1, 5, 6, 7)
        assert float(ncc_loss(a, b)) == pytest.approx(1 - np.corrcoef(a.flatten(), b.flatten())[0, 1], abs=1e-5)

    def test_squared_it_is_itks_metric(self):
        a, b = torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsCorrelation()
        method.SetInitialTransform(sitk.TranslationTransform(3))
        value = method.MetricEvaluate(*(sitk.GetImageFromArray(x[0, 0].numpy()) for x in (a, b)))
        assert (1 - float(ncc_loss(a, b))) ** 2 == pytest.approx(-value, abs=1e-4)


class TestLNCC(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = {"monotone"}
    bounded_by = 1

    def make(self):
        return LNCC(window=5)

    @pytest.mark.parametrize("squared", [True, False])
    def test_is_scipys_local_correlation(self, squared):
        a, b = (torch.rand(1, 1, 14, 15, 16, dtype=torch.float64) for _ in range(2))

        def mean(x):
            return scipy.ndimage.uniform_filter(x, 5, mode="constant") / scipy.ndimage.uniform_filter(
                np.ones_like(x), 5, mode="constant"
            )

        x, y = a[0, 0].numpy(), b[0, 0].numpy()
        cov = mean(x * y) - mean(x) * mean(y)
        correlation = cov / np.sqrt((mean(x * x) - mean(x) ** 2) * (mean(y * y) - mean(y) ** 2))
        expected = 1 - np.mean(correlation**2 if squared else correlation)
        assert float(lncc_loss(a, b, window=5, squared=squared, floor=1e-9)) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 0.0), (1e4, 0.0), (1.0, 1000.0), (-2.0, 5.0)])
    def test_an_image_with_itself_is_the_minimum(self, scale, offset):
        image = self.pair()[0].data.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            own = float(lncc_loss(scale * image + offset, scale * image + offset))
            other = float(lncc_loss(scale * image.flip(-1) + offset, scale * image + offset))
        assert 0 <= own < 0.01
        assert own < other <= 1

    def test_unrelated_noise_is_no_match(self):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.rand(1, 1, 24, 24, 24, generator=generator) for _ in range(2))
        assert float(lncc_loss(a, b)) > 0.99
        assert float(lncc_loss(a, b, squared=False)) == pytest.approx(1, abs=0.02)

    def test_agrees_with_monai_where_monai_is_defined(self):
        """

        import gc
        import weakref
        from concurrent.futures import ThreadPoolExecutor
        MONAI pads with zeros and adds an absolute epsilon: compared on images with a frame of zeros."""
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        a = torch.nn.functional.pad(torch.rand(1, 1, 16, 16, 16), [12] * 6)
        b = a + torch.nn.functional.pad(torch.rand(1, 1, 16, 16, 16), [12] * 6)
        theirs = 1 + float(LocalNormalizedCrossCorrelationLoss(kernel_size=9)(a, b))
        assert float(lncc_loss(a, b, floor=1e-5)) == pytest.approx(theirs, abs=0.005)

    def test_windows_must_be_odd(self):
        with pytest.raises(ValueError, match="odd window"):
            lncc_loss(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5), window=4)


class TestMixture(SimilarityLaws):
    def make(self):
        return Mixture({"lncc": Weighted(LNCC(5)), "mse": Weighted(MSE(), 10.0)})

    def test_weights_must_fit(self):
        with pytest.raises(ValueError, match="must be a learnreg.terms.Weighted, got MSE"):
            Mixture({"mse": MSE()})


class TestGaussianLNCC(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny"}
    finds_under = {"monotone"}
    bounded_by = 2

    def make(self):
        return LNCC(window=5, kernel="gaussian", squared=False)

    def test_is_scipys_local_correlation(self):
        a, b = (torch.rand(1, 1, 14, 15, 16, dtype=torch.float64) for _ in range(2))
        ones = np.ones((14, 15, 16))

        def mean(x):
            def smooth(y):
                return scipy.ndimage.gaussian_filter(y, math.sqrt(2), mode="constant", truncate=12)

            return smooth(x) / smooth(ones)

        x, y = a[0, 0].numpy(), b[0, 0].numpy()
        cov = mean(x * y) - mean(x) * mean(y)
        correlation = cov / np.sqrt((mean(x * x) - mean(x) ** 2) * (mean(y * y) - mean(y) ** 2))
        ours = float(lncc_loss(a, b, window=5, kernel="gaussian", squared=False, floor=1e-9))
        assert ours == pytest.approx(1 - np.mean(correlation), abs=1e-6)


class TestStridedLNCC(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    bounded_by = 1

    def make(self):
        return LNCC(window=5, stride=2)

    def test_it_is_near_that_of_all_windows(self):
        image, _ = self.pair()
        other = image.data + noise(image.data, 0.3)
        assert float(self.make()(other, image.data)) == pytest.approx(float(LNCC(5)(other, image.data)), rel=0.03)
        with pytest.raises(ValueError, match="stride of at least 1"):
            LNCC(stride=0)(other, other)


class TestL1(SimilarityLaws):
    def make(self):
        return L1()

    def test_is_torchs(self):
        a, b = torch.rand(2, 1, 5, 6, 7), torch.rand(2, 1, 5, 6, 7)
        assert float(L1()(a, b)) == pytest.approx(float(torch.nn.functional.l1_loss(a, b)), rel=1e-6)


class TestHuber(SimilarityLaws):
    def make(self):
        return Huber(0.15)

    def test_is_torchs(self):
        a, b = torch.rand(2, 1, 5, 6, 7), torch.rand(2, 1, 5, 6, 7)
        expected = float(torch.nn.functional.huber_loss(a, b, delta=0.15))
        assert float(huber_loss(a, b, delta=0.15)) == pytest.approx(expected, rel=1e-6)
        with pytest.raises(ValueError, match="positive delta"):
            huber_loss(a, b, delta=0.0)


ALL_MAPS = {"monotone", "inverted", "folded"}


class TestMutualInformation(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = ALL_MAPS
    lowest, bounded_by = -math.log(20), 0.0

    def make(self):
        return MutualInformation(24)

    def test_is_itks_mattes_metric(self):
        """With Mattes' windows, on the very voxels and bins that ITK uses."""
        grid = make_grid(shape=(16, 18, 20), spacing=(1.0, 1.0, 1.0))
        fixed = smooth_image(grid).data + noise(smooth_image(grid).data, 0.1)
        warped = (fixed * 1.3).exp() + noise(fixed, 0.2, 1)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetInitialTransform(sitk.TranslationTransform(3))
        theirs = method.MetricEvaluate(*(sitk.GetImageFromArray(x[0, 0].numpy()) for x in (fixed, warped)))
        ours = float(mutual_information_loss(warped, fixed, bins=32, orders=(3, 0)))
        assert ours == pytest.approx(theirs, abs=2e-3)
        assert float(mutual_information_loss(warped, fixed, bins=32)) == pytest.approx(theirs, rel=0.1)

    def test_samples_are_chosen_by_the_seed(self):
        image, _ = self.pair()
        other = image.data.roll(1, -1)
        few = [float(mutual_information_loss(other, image.data, samples=2000, seed=s)) for s in (1, 1, 2)]
        assert few[0] == few[1] != few[2]
        assert few[0] == pytest.approx(float(mutual_information_loss(other, image.data)), rel=0.1)

    def test_failures(self):
        image = self.pair()[0].data
        with pytest.raises(ValueError, match="at least 8 bins"):
            mutual_information_loss(image, image, bins=4)
        with pytest.raises(ValueError, match="order 0, 1 or 3"):
            mutual_information_loss(image, image, orders=(2, 1))


class TestNormalizedMutualInformation(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = ALL_MAPS
    bounded_by = 1

    def make(self):
        return MutualInformation(24, normalized=True)

    def test_is_scikit_images(self):
        """With hard bins; two empty ones at both ends are ours alone."""
        a, b = (torch.rand(1, 1, 12, 13, 14, dtype=torch.float64) for _ in range(2))
        b = a + 0.3 * b
        theirs = skimage.metrics.normalized_mutual_information(a[0, 0].numpy(), b[0, 0].numpy(), bins=20)
        ours = 2 - float(mutual_information_loss(a, b, bins=24, normalized=True, orders=(0, 0)))
        assert ours == pytest.approx(theirs, abs=1e-6)


class TestCorrelationRatio(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = {"monotone", "inverted"}
    bounded_by = 1

    def make(self):
        return CorrelationRatio(24)

    def test_is_the_variance_within_bins(self):
        a, b = (torch.rand(1, 1, 12, 13, 14, dtype=torch.float64) for _ in range(2))
        w, f = (a + b).flatten().numpy(), b.flatten().numpy()
        edges = np.linspace(f.min(), f.max(), 21)
        which = np.clip(np.digitize(f, edges) - 1, 0, 19)
        within = sum(w[which == k].var() * (which == k).sum() for k in range(20) if (which == k).any())
        ours = float(correlation_ratio_loss(a + b, b, bins=24, order=0))
        assert ours == pytest.approx(within / (w.var() * w.size), abs=1e-9)

    def test_a_function_of_the_fixed_image_is_explained(self):
        labels = torch.randint(0, 5, (1, 1, 12, 12, 12), generator=torch.Generator().manual_seed(0)).double()
        assert float(correlation_ratio_loss((labels - 2) ** 2, labels, bins=24)) == pytest.approx(0, abs=1e-9)


class TestNGF(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = ALL_MAPS - {"folded"}
    bounded_by = 1

    def make(self):
        return NGF(0.2)

    def test_is_the_squared_cosine_where_there_are_edges(self):
        grid = Grid.regular((12, 12), dtype=torch.float64)
        x, y = grid.points[..., 0][:, None], grid.points[..., 1][:, None]
        mask = torch.zeros_like(x)
        mask[..., 1:-1, 1:-1] = 1  # the border has one-sided differences
        for angle in (0.0, 0.4, 1.0, math.pi / 2):
            ramp = math.cos(angle) * x + math.sin(angle) * y
            assert float(ngf_loss(ramp, x, mask, edge=1e-3)) == pytest.approx(1 - math.cos(angle) ** 2, abs=1e-4)

    def test_edge_must_be_positive(self):
        with pytest.raises(ValueError, match="positive edge"):
            ngf_loss(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5), edge=0.0)


class TestMIND(SimilarityLaws):
    unchanged_by = {"scaled", "offset", "tiny", "inverted"}
    finds_under = {"monotone"}
    bounded_by = 1
    smallest = 5

    def make(self):
        return MIND()

    def test_descriptor_is_its_definition(self):
        """Written out with scipy's filters, away from the border."""
        x = torch.rand(14, 15, 16, dtype=torch.float64).numpy()
        offsets = [np.array(v) for v in itertools.product((-2, 0, 2), repeat=3) if np.abs(v).sum() == 2]
        pairs = [(a, b) for a, b in itertools.combinations(offsets, 2) if (a * b).sum() == 0 and (a + b).any()]
        assert len(pairs) == 12
        inner = (slice(4, -4),) * 3

        def seen(v):
            return scipy.ndimage.shift(x, -v, order=0, mode="nearest")

        d = np.stack([scipy.ndimage.uniform_filter((seen(a) - seen(b)) ** 2, 3) for a, b in pairs])
        d -= d.min(0)
        expected = np.exp(-d / d.mean(0))
        ours = self_similarity(torch.from_numpy(x)[None, None])[0].numpy()
        order = [np.abs(ours[k][inner] - expected[:, *inner]).max((1, 2, 3)).argmin() for k in range(12)]
        assert sorted(order) == list(range(12))
        assert np.abs(ours[:, *inner] - expected[order][:, *inner]).max() < 1e-9

    def test_failures(self):
        with pytest.raises(ValueError, match="radius and dilation"):
            self_similarity(torch.zeros(1, 1, 8, 8), radius=0)


class TestSSIM(SimilarityLaws):
    bounded_by = 2

    def make(self):
        return SSIM()

    @pytest.mark.parametrize("kernel", ["box", "gaussian"])
    @pytest.mark.parametrize("shape", [(24, 26), (18, 19, 20)])
    def test_is_scikit_images_away_from_the_border(self, shape, kernel):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.rand(1, 1, *shape, dtype=torch.float64, generator=generator) for _ in range(2))
        b = 0.5 * a + b + 100
        window, options = (7, {"win_size": 7}) if kernel == "box" else (5, {"gaussian_weights": True, "sigma": 2**0.5})
        _, theirs = skimage.metrics.structural_similarity(
            b[0, 0].numpy(), a[0, 0].numpy(), data_range=2.0, full=True, use_sample_covariance=False, **options
        )
        ours = structural_similarity(b, a, window=window, kernel=kernel, data_range=2.0)[0, 0].numpy()
        inner = (slice(6, -6),) * len(shape)
        tolerance = 1e-9 if kernel == "box" else 2e-3  # theirs cuts the Gaussian off at 3.5 sigma
        assert np.abs(ours[inner] - theirs[inner]).max() < tolerance

    def test_range_must_be_positive(self):
        with pytest.raises(ValueError, match="must be positive"):
            SSIM(data_range=0.0)


class TestFeatureSimilarity(SimilarityLaws):
    smallest = 6

    def make(self):
        torch.manual_seed(0)
        return FeatureSimilarity(Features(), NCC())

    def test_a_mask_really_counts(self):
        """Features see beyond the mask; the mask weights their maps, at their own resolution."""
        image, _ = self.pair()
        mask = torch.zeros_like(image.data)
        mask[..., :8] = 1
        spoiled = image.data.clone()
        spoiled[..., 16:] = 9
        similarity, other = self.make(), image.data + noise(image.data, 0.1)
        changed = torch.where(torch.arange(20) < 16, other, spoiled)
        assert float(similarity(changed, image.data, mask)) == pytest.approx(
            float(similarity(other, image.data, mask)), abs=1e-9
        )
        assert float(similarity(changed, image.data)) > float(similarity(other, image.data)) + 1e-3

    def test_channels_are_averaged(self):
        """Not by features: an extractor says how many channels it takes."""
        with pytest.raises(RuntimeError):
            self.make()(torch.rand(1, 2, 8, 8, 8), torch.rand(1, 2, 8, 8, 8))

    def test_2d(self):
        extractor = torch.nn.Conv2d(1, 4, 3, padding=1)
        image = torch.rand(1, 1, 12, 12)
        similarity = FeatureSimilarity(extractor)
        assert float(similarity(image, image)) == 0
        assert float(similarity(image.flip(-1), image)) > 0

    def test_the_extractor_is_frozen(self):
        similarity = self.make().train()
        assert not similarity.extractor.training
        assert not any(p.requires_grad for p in similarity.parameters())

    def test_needs_maps(self):
        with pytest.raises(TypeError, match="returns feature maps"):
            FeatureSimilarity(Nothing())(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


class Features(torch.nn.Module):
    """Maps at two resolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 6, 3, stride=2, padding=1)

    def forward(self, image):
        fine = torch.tanh(self.first.to(image.dtype)(image))
        return [fine, self.second.to(image.dtype)(fine)]


class Nothing(torch.nn.Module):
    def forward(self, image):
        return {"no": "maps"}


def test_dice_loss():
    labels = torch.tensor([[[[0, 1, 1, 2, 2, 2]]]])
    maps = one_hot(labels, [1, 2])
    assert maps.shape == (1, 2, 1, 6)
    assert float(dice_loss(maps, maps)) == pytest.approx(0)
    half = one_hot(torch.tensor([[[[0, 0, 1, 2, 2, 2]]]]), [1, 2])
    assert float(dice_loss(half, maps)) == pytest.approx(1 - (2 / 3 + 1) / 2, abs=1e-6)
    absent = one_hot(labels, [1, 7])
    assert float(dice_loss(absent, absent)) == pytest.approx(0)  # a label that is in neither does not count
    mask = torch.tensor([[[[1, 1, 0, 1, 1, 1]]]])
    assert float(dice_loss(one_hot(torch.tensor([[[[0, 1, 0, 2, 2, 2]]]]), [1, 2]), maps, mask)) == pytest.approx(0)


def test_dice_gradcheck():
    warped = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: dice_loss(w, torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double()), (warped,)
    )


def test_features_follow_the_weights_of_their_extractor():
    """What is known of the fixed image belongs to one level, so new weights are seen at the next."""
    torch.manual_seed(0)
    extractor = torch.nn.Conv3d(1, 4, 3, padding=1)
    similarity = FeatureSimilarity(extractor)
    warped, fixed = torch.rand(2, 1, 1, 8, 8, 8)
    before = float(similarity(warped, fixed))
    extractor.load_state_dict({name: 2 * value for name, value in extractor.state_dict().items()})
    fresh = float(FeatureSimilarity(extractor)(warped, fixed))
    assert float(similarity(warped, fixed)) == fresh == pytest.approx(4 * before, rel=1e-5)


@pytest.mark.parametrize("similarity", [LNCC(5), NCC(), MIND(), NGF(), SSIM(), MutualInformation(), CorrelationRatio()])
def test_threads_compare_at_once(similarity):
    pairs = [torch.rand(2, 1, 1, 9, 9, 9) for _ in range(8)]
    alone = [float(similarity(*pair)) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: float(similarity(*pair)), pairs)) == alone


def test_nothing_outlives_a_comparison():
    """An extractor that returns its input would be kept alive with the images by a cache."""
    similarity = FeatureSimilarity(torch.nn.Identity())
    fixed = torch.rand(1, 1, 8, 8, 8)
    seen = weakref.ref(fixed)
    compare = similarity.prepare(fixed)
    compare(torch.rand(1, 1, 8, 8, 8))
    del fixed, compare
    gc.collect()
    assert seen() is None
