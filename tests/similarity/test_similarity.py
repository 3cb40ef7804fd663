import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import torch

from learnreg.similarity import LNCC, MSE, NCC, Mixture, dice_loss, lncc_loss, ncc_loss, one_hot
from tests.similarity.laws import SimilarityLaws


class TestMSE(SimilarityLaws):
    def make(self):
        return MSE()

    def test_is_numpys(self):
        a, b = torch.rand(1, 1, 5, 6, 7), torch.rand(1, 1, 5, 6, 7)
        assert float(MSE()(a, b)) == pytest.approx(float(np.mean((a.numpy() - b.numpy()) ** 2)), rel=1e-5)


class TestNCC(SimilarityLaws):
    invariant = True

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
    invariant = True

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
        """MONAI pads with zeros and adds an absolute epsilon: compared on images with a frame of zeros."""
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
        return Mixture({"lncc": LNCC(5), "mse": MSE()}, {"lncc": 1.0, "mse": 10.0})

    def test_weights_must_fit(self):
        with pytest.raises(ValueError, match="one weight for each term"):
            Mixture({"mse": MSE()}, {"ncc": 1.0})


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
