"""What every similarity obeys."""

import pytest
import torch

from learnreg.transforms import Affine
from learnreg.warping import warp
from tests.conftest import make_grid, smooth_image

SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)


class SimilarityLaws:
    invariant = False  # under a I + b with a > 0

    def make(self) -> torch.nn.Module:
        raise NotImplementedError

    def pair(self):
        grid = make_grid(shape=(16, 18, 20), spacing=(1.0, 1.0, 1.0))
        return smooth_image(grid), grid

    def test_lowest_at_the_true_shift(self):
        image, grid = self.pair()
        losses = []
        for shift in SHIFTS:
            moved = warp(
                image, Affine.translation(torch.tensor([shift, 0.0, 0.0], dtype=torch.float64)), grid, padding="border"
            )
            losses.append(float(self.make()(moved.data, image.data)))
        assert losses.index(min(losses)) == SHIFTS.index(0.0)
        assert sorted(losses[:3], reverse=True) == losses[:3]
        assert sorted(losses[2:]) == losses[2:]

    @pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1e4, 0.0), (1.0, 1000.0), (250.0, -3.0)])
    def test_scale_and_offset(self, scale, offset):
        if not self.invariant:
            pytest.skip("claims no invariance")
        image, _ = self.pair()
        noisy = image.data + 0.1 * torch.randn(image.data.shape, generator=torch.Generator().manual_seed(0)).double()
        similarity = self.make()
        plain = float(similarity(noisy, image.data))
        changed = float(similarity((scale * noisy + offset).float(), (scale * image.data + offset).float()))
        assert changed == pytest.approx(plain, abs=2e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            automatic = float(similarity((scale * noisy + offset).float(), (scale * image.data + offset).float()))
        assert automatic == pytest.approx(plain, abs=2e-3)

    def test_a_mask_really_counts(self):
        image, _ = self.pair()
        mask = torch.zeros_like(image.data)
        mask[..., 4:12] = 1
        spoiled = image.data.clone()
        spoiled[..., 14:] = torch.rand(spoiled[..., 14:].shape, generator=torch.Generator().manual_seed(1)).double() * 5
        similarity = self.make()
        assert float(similarity(spoiled, image.data, mask)) == pytest.approx(
            float(similarity(image.data, image.data, mask)), abs=1e-6
        )
        assert float(similarity(spoiled, image.data)) > float(similarity(image.data, image.data)) + 1e-3

    def test_a_mask_of_ones_changes_nothing(self):
        image, _ = self.pair()
        other = image.data.roll(1, -1)
        ones = torch.ones_like(image.data)
        assert float(self.make()(other, image.data, ones)) == pytest.approx(
            float(self.make()(other, image.data)), abs=1e-6
        )

    def test_gradcheck(self):
        generator = torch.Generator().manual_seed(2)
        fixed = torch.rand(2, 1, 5, 4, 5, dtype=torch.float64, generator=generator)
        warped = torch.rand(2, 1, 5, 4, 5, dtype=torch.float64, generator=generator).requires_grad_()
        mask = (torch.rand(2, 1, 5, 4, 5, generator=generator) > 0.3).double()
        assert torch.autograd.gradcheck(lambda w: self.make()(w, fixed), (warped,))
        assert torch.autograd.gradcheck(lambda w: self.make()(w, fixed, mask), (warped,))

    def test_constant_images_give_a_finite_loss_and_gradient(self):
        fixed = torch.rand(1, 1, 6, 6, 6)
        warped = torch.full((1, 1, 6, 6, 6), 3.0, requires_grad=True)
        loss = self.make()(warped, fixed)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(warped.grad).all()
