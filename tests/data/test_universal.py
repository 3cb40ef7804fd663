"""Random pairs: the correspondence is right, and a pair is a function of its seed."""

import pytest
import torch

from learnreg.data import RandomPairs, UniversalData
from learnreg.data.anatomies import Draws, gaussians, seeds_of
from learnreg.data.painting import _slices
from learnreg.data.preprocessing import ModelSpace
from learnreg.warping import warp


def agreement(a, b):
    """Share of the voxels that are structure in both maps and have the same label."""
    both = (a > 0) & (b > 0)
    return float((a == b)[both].float().mean())


@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 20, 28), (40, 36)])
def test_the_true_transform_aligns_labels_and_landmarks(shape):
    make = RandomPairs(shape, templates=0.0, bend=0.1)
    fixed, moving, truth = make(seeds_of(0, range(6)))
    warped = warp(moving, truth, fixed.grid)
    assert (
        agreement(warped.labels, fixed.labels) > 0.8
    )  # the rest is nearest-neighbor sampling of structures of few voxels
    assert agreement(moving.labels, fixed.labels) < 0.75
    marked = ~fixed.landmarks.isnan().any(-1)
    assert torch.equal(marked, ~moving.landmarks.isnan().any(-1))
    assert marked.sum() > 200
    assert torch.allclose(truth(fixed.landmarks.nan_to_num())[marked], moving.landmarks[marked], atol=1e-4)


def test_a_pair_is_a_function_of_its_seed():
    make = RandomPairs((16, 16, 16), templates=0.0)
    together, alone = make(seeds_of(3, [4, 5])), make(seeds_of(3, [5]))
    for both, single in zip(together[:2], alone[:2], strict=True):
        assert torch.allclose(both.data[1:], single.data, atol=1e-5)
        assert torch.equal(both.labels[1:], single.labels)
        assert torch.allclose(both.landmarks[1:], single.landmarks, atol=1e-4, equal_nan=True)
    assert not torch.allclose(together[0].data[0], together[0].data[1])


def test_images_are_in_the_range_of_a_network_and_of_many_contrasts():
    make = RandomPairs((24, 24, 24), templates=0.0)
    fixed, moving, truth = make(seeds_of(0, range(12)))
    for image in (fixed, moving):
        assert image.data.isfinite().all()
        assert (image.data.min(), image.data.max()) == (0, 1)
    warped = warp(moving, truth, fixed.grid).data
    correlations = [
        float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
        for a, b in zip(warped, fixed.data, strict=True)
    ]
    assert min(correlations) < 0.2
    assert max(correlations) > 0.8


def test_almost_aligned_without_rotation_scale_shift_and_bend():
    make = RandomPairs((24, 24, 24), rotation=0.0, scale=1.0, shift=0.0, bend=0.0, templates=0.0)
    fixed, moving, truth = make(seeds_of(1, range(4)))
    moved = (truth.map_grid(fixed.grid) - fixed.grid.points).norm(dim=-1)
    assert moved.max() < 0.25 * 12  # a shear of at most 0.1 remains
    assert agreement(moving.labels, fixed.labels) > 0.8


def test_tissues_of_the_template_are_labels():
    pytest.importorskip("nilearn")
    make = RandomPairs((32, 32, 32), templates=1.0, bend=0.1)
    fixed, moving, truth = make(seeds_of(0, range(3)))
    assert agreement(warp(moving, truth, fixed.grid).labels, fixed.labels) > 0.7  # cortex is a voxel thin here
    assert (fixed.labels == 0).float().mean() > 0.05


def test_slices_and_gaussians_keep_constants():
    for matrices in (gaussians(20, torch.tensor([0.5, 3.0])), _slices(20, torch.tensor([1.0, 4.5]))):
        assert torch.allclose(matrices.sum(2), torch.ones(2, 20), atol=1e-5)
    assert torch.equal(_slices(9, torch.ones(1))[0], torch.eye(9))


def test_draws_end_with_an_error():
    with pytest.raises(RuntimeError, match="uniform numbers"):
        Draws([0], "cpu").uniform(5000)


class TestData:
    def make(self, **changes):
        return UniversalData(
            ModelSpace(shape=(16, 16), longest=16), **{"templates": 0.0, "validation_pairs": 2, **changes}
        )

    def test_batches_are_made_from_indices(self):
        data = self.make(pairs=4, batch_size=2)
        numbers = next(iter(data.train_dataloader()))
        fixed, moving = data.on_after_batch_transfer(numbers, 0)
        expected, _, _ = data.draw(seeds_of(0, numbers.tolist()))
        assert torch.equal(fixed.data, expected.data)
        assert moving.data.shape == (2, 1, 16, 16)

    def test_validation_pairs_are_apart_and_have_their_truth(self):
        data = self.make()
        cases = list(data.cases())
        assert len(cases) == len(data.val_dataloader()) == 2
        assert cases[0].truth.displacement(cases[0].fixed.grid).abs().max() > 0
        kept = next(iter(data.val_dataloader()))
        assert data.on_after_batch_transfer(kept, 0) is kept

    def test_what_is_wrong_is_told(self):
        with pytest.raises(ValueError, match=r"data\.space\.shape"):
            UniversalData(ModelSpace())
        with pytest.raises(ValueError, match="at least 1"):
            self.make(batch_size=0)


def test_the_inverse_of_the_truth_is_the_truth_of_the_exchanged_pair():
    fixed, _, truth = RandomPairs((20, 20, 20), templates=0.0, bend=0.1)(seeds_of(0, [1]))
    middle = fixed.grid.points[:, 8:12, 8:12, 8:12]
    assert (truth.inverse()(truth(middle)) - middle).norm(dim=-1).max() < 0.1  # mm, of voxels of 1 mm
