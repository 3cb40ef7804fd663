"""What every similarity obeys."""

import pytest
import torch

from learnreg.grid import Grid
from learnreg.transforms import Affine
from learnreg.warping import warp
from tests.conftest import make_grid, smooth_image, smooth_values

SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
RELATIONS = {
    "identity": lambda x: x,
    "scaled": lambda x: 1e4 * x,
    "offset": lambda x: x + 1000.0,
    "tiny": lambda x: 1e-3 * x - 3e-3,
    "inverted": lambda x: 5.0 - 2.0 * x,
    "monotone": lambda x: torch.exp(0.8 * x),
    "folded": lambda x: (x - 0.2) ** 2,
}
LINEAR = {"scaled", "offset", "tiny"}


def noise(like, size, seed=0):
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


class SimilarityLaws:
    unchanged_by: set = set()  # relations between the images that leave the value as it is
    finds_under: set = set()  # relations under which the true shift still is the best
    lowest, bounded_by = 0.0, float("inf")
    smallest = 5  # side of an image for gradcheck

    def make(self) -> torch.nn.Module:
        raise NotImplementedError

    def pair(self):
        grid = make_grid(shape=(16, 18, 20), spacing=(1.0, 1.0, 1.0))
        return smooth_image(grid), grid

    def test_lowest_at_the_true_shift(self):
        image, grid = self.pair()
        for relation in {"identity"} | self.finds_under | self.unchanged_by:
            fixed = RELATIONS[relation](image.data)
            losses = []
            for shift in SHIFTS:
                transform = Affine.translation(torch.tensor([shift, 0.0, 0.0], dtype=torch.float64))
                moved = warp(image, transform, grid, padding="border")
                losses.append(float(self.make()(moved.data, fixed)))
            assert losses.index(min(losses)) == SHIFTS.index(0.0), relation
            assert sorted(losses[:3], reverse=True) == losses[:3], relation
            assert sorted(losses[2:]) == losses[2:], relation

    def test_prepared_equals_the_call(self):
        """With and without a mask, and for a second warped image."""
        image, _ = self.pair()
        similarity, mask = self.make(), (image.data > -0.5).to(image.data)
        for weights in (None, mask):
            compare = similarity.prepare(image.data, weights)
            for seed in (0, 1):
                warped = image.data + noise(image.data, 0.1, seed)
                assert float(compare(warped)) == pytest.approx(
                    float(similarity(warped, image.data, weights)), rel=1e-12
                )

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
    def test_value_is_unchanged(self, precision):
        """By autocast, and by the relations of which the similarity says so."""
        image, _ = self.pair()
        noisy = image.data + noise(image.data, 0.1)
        plain = float(self.make()(noisy, image.data))
        for relation in {"identity"} | self.unchanged_by:
            first, second = noisy.float(), image.data.float()
            if relation in LINEAR:
                first = RELATIONS[relation](first)
            with torch.autocast("cpu", dtype=precision, enabled=precision is not torch.float32):
                value = self.make()(first, RELATIONS[relation](second))
            assert value.dtype == torch.float32
            assert float(value) == pytest.approx(plain, abs=2e-3), relation

    def test_a_mask_really_counts(self):
        image, _ = self.pair()
        mask = torch.zeros_like(image.data)
        mask[..., 4:12] = 1
        spoiled = image.data.clone()
        spoiled[..., :4], spoiled[..., 12:] = noise(spoiled[..., :4], 2.0, 1), noise(spoiled[..., 12:], 5.0, 2)
        similarity, other = self.make(), image.data + noise(image.data, 0.1)
        other_spoiled = torch.where(mask > 0, other, spoiled)
        expected = float(similarity(other, image.data, mask))
        assert float(similarity(other_spoiled, image.data, mask)) == pytest.approx(expected, abs=1e-9)
        assert float(similarity(other, torch.where(mask > 0, image.data, spoiled), mask)) == pytest.approx(
            expected, abs=1e-9
        )
        assert float(similarity(other_spoiled, image.data)) > float(similarity(other, image.data)) + 1e-3

    def test_a_mask_of_ones_changes_nothing(self):
        image, _ = self.pair()
        other = image.data.roll(1, -1)
        ones = torch.ones_like(image.data)
        assert float(self.make()(other, image.data, ones)) == pytest.approx(
            float(self.make()(other, image.data)), abs=1e-6
        )

    def test_a_batch_is_the_mean_of_its_members(self):
        image, _ = self.pair()
        fixed = torch.cat([image.data, 2 * image.data.flip(-1)])
        warped = fixed + noise(fixed, 0.2)
        mask = torch.ones_like(fixed)
        mask[0, ..., :5], mask[1, ..., 9:] = 0, 0
        for m in (None, mask):
            each = [
                float(self.make()(warped[i : i + 1], fixed[i : i + 1], m if m is None else m[i : i + 1]))
                for i in range(2)
            ]
            assert float(self.make()(warped, fixed, m)) == pytest.approx(sum(each) / 2, abs=1e-9)

    def test_channels_are_averaged(self):
        image, _ = self.pair()
        fixed = torch.cat([image.data, image.data.flip(-2).exp()], 1)
        warped = fixed + noise(fixed, 0.2)
        each = [float(self.make()(warped[:, i : i + 1], fixed[:, i : i + 1])) for i in range(2)]
        assert float(self.make()(warped, fixed)) == pytest.approx(sum(each) / 2, abs=1e-9)

    def test_2d(self):
        grid = Grid.regular((20, 24), dtype=torch.float64)
        fixed = smooth_values(grid.points)[:, None]
        similarity = self.make()
        assert float(similarity(fixed.roll(2, -1), fixed)) > float(similarity(fixed, fixed)) + 1e-4

    def test_what_is_remembered_of_the_fixed_image_is_right(self):
        image, _ = self.pair()
        fixed, warped = image.data.clone(), image.data + noise(image.data, 0.2)
        similarity = self.make()
        first = float(similarity(warped, fixed))
        assert float(similarity(warped, fixed)) == first
        assert float(similarity(warped, fixed.clone())) == first
        fixed.copy_(fixed.flip(-1))  # the same object with other values
        assert float(similarity(warped, fixed)) == float(similarity(warped, image.data.flip(-1)))

    @pytest.mark.slow
    def test_gradcheck(self):
        generator = torch.Generator().manual_seed(2)
        shape = (2, 1, self.smallest, self.smallest - 1, self.smallest)
        fixed = torch.rand(shape, dtype=torch.float64, generator=generator)
        warped = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
        mask = (torch.rand(shape, generator=generator) > 0.1).double()
        assert torch.autograd.gradcheck(lambda w: self.make()(w, fixed), (warped,))
        assert torch.autograd.gradcheck(lambda w: self.make()(w, fixed, mask), (warped,))

    def test_constant_images_give_a_finite_loss_and_gradient(self):
        fixed = torch.rand(1, 1, 8, 8, 8)
        for first, second in ((torch.full_like(fixed, 3.0), fixed), (fixed, torch.full_like(fixed, 3.0))):
            warped = first.clone().requires_grad_()
            loss = self.make()(warped, second)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(warped.grad).all()

    def test_bounds(self):
        generator = torch.Generator().manual_seed(3)
        for _ in range(5):
            a, b = (torch.rand(1, 1, 12, 12, 12, generator=generator) for _ in range(2))
            assert self.lowest <= float(self.make()(a, b)) <= self.bounded_by + 1e-6
            assert self.lowest - 1e-6 <= float(self.make()(a, a)) <= self.bounded_by

    def test_a_batch_is_the_mean_of_its_pairs(self):
        """With masks, and of one fixed image for several warped ones."""
        image, _ = self.pair()
        similarity = self.make()
        warped = torch.cat([image.data + noise(image.data, size, seed) for seed, size in enumerate((0.1, 0.4))])
        fixed = torch.cat([image.data, image.data.flip(2)])
        masks = torch.cat([(image.data > level).to(image.data) for level in (-0.5, 0.0)])
        for f, m in ((fixed, None), (fixed[:1], None), (fixed, masks)):
            each = [None, None] if m is None else m.split(1)
            parts = zip(warped.split(1), f.expand_as(warped).split(1), each, strict=True)
            apart = torch.stack([similarity(*part) for part in parts]).mean()
            assert torch.allclose(similarity(warped, f, m), apart, rtol=1e-5, atol=1e-7)
            assert torch.allclose(similarity.prepare(f, m)(warped), apart, rtol=1e-5, atol=1e-7)
        free = warped.clone().requires_grad_()
        similarity(free, fixed[:1]).backward()
        assert free.grad.isfinite().all()

    def test_the_type_of_the_images_does_not_matter(self):
        image, _ = self.pair()
        warped = image.data + noise(image.data, 0.2)
        double, single = (
            float(self.make()(warped.to(kind), image.data.to(kind))) for kind in (torch.float64, torch.float32)
        )
        assert single == pytest.approx(double, rel=1e-3, abs=1e-4)

    def test_an_empty_mask_gives_a_finite_value(self):
        image, _ = self.pair()
        free = image.data.clone().requires_grad_()
        value = self.make()(free, image.data, torch.zeros_like(image.data))
        assert bool(value.isfinite())
        if value.requires_grad:
            value.backward()
            assert free.grad.isfinite().all()
