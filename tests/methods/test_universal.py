"""The released model for any pair, on images that it was not trained on."""

from dataclasses import replace

import pytest
import torch

import learnreg
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.metrics import folding_fraction, score
from learnreg.networks import DescriptorMaps, MatchingNetwork
from learnreg.networks.checkpoint import of_dimension
from learnreg.similarity import FeatureSimilarity
from learnreg.transforms import Affine
from tests.conftest import blob_image


def dice(fixed, moving, transform):
    return float(score(fixed, moving, transform).dice.nanmean())


@pytest.fixture
def crops(real_data):
    folder = real_data / "hippocampus"
    files = sorted((folder / "images").glob("*.nii.gz"))[196:200]
    return [learnreg.read_image(file, labels=folder / "labels" / file.name) for file in files]


def test_crops_of_the_hippocampus(crops):
    """Files 197-200, whose organ the model has never seen."""
    gains = []
    for fixed, moving in zip(crops[::2], crops[1::2], strict=True):
        result = learnreg.register(fixed, moving, checkpoint="universal")
        gains.append(dice(fixed, moving, result.transform) - dice(fixed, moving, result.initial))
        assert float(folding_fraction(result.sampled.field, fixed.grid)) == 0
    assert sum(gains) / len(gains) > 0.1


def test_a_header_that_lost_its_orientation_changes_little(crops):
    fixed, moving = crops[:2]
    upright = dice(fixed, moving, learnreg.register(fixed, moving, checkpoint="universal").transform)
    turned = [replace(image, data=image.data.flip(2), labels=image.labels.flip(2)) for image in (fixed, moving)]
    found = dice(*turned, learnreg.register(*turned, checkpoint="universal").transform)
    assert abs(found - upright) < 0.05


def test_a_brain_that_is_turned_and_shifted_is_found(real_data):
    """By 43 degrees and 40 mm in its header, which nothing but the images can tell."""
    folder = real_data / "brain"
    fixed, moving = (
        learnreg.read_image(folder / "images" / f"{name}.nii.gz", labels=folder / "labels" / f"{name}.nii.gz")
        for name in ("1019", "1104")
    )
    turn = torch.matrix_exp(torch.tensor([[[0.0, -0.43, -0.43], [0.43, 0.0, -0.43], [0.43, 0.43, 0.0]]]).double())
    motion = Affine.about(turn, torch.tensor([[25.0, -20.0, 24.0]]).double(), moving.grid.center.double())
    header = (motion.matrix @ moving.grid.affine.double()).to(moving.grid.affine)
    moved = replace(moving, grid=Grid(moving.grid.shape, header))
    upright = dice(fixed, moving, learnreg.register(fixed, moving, checkpoint="universal").transform)
    turned = dice(fixed, moved, learnreg.register(fixed, moved, checkpoint="universal").transform)
    assert upright > 0.45
    assert turned > upright - 0.03


def test_a_brain_in_inverted_contrast(real_data):
    """Two people of the validation block."""
    folder = real_data / "brain"
    fixed, moving = (
        learnreg.read_image(folder / "images" / f"{name}.nii.gz", labels=folder / "labels" / f"{name}.nii.gz")
        for name in ("1019", "1104")
    )
    inverted = moving.with_data((moving.data.max() - moving.data) * (moving.data > 0))
    result = learnreg.register(fixed, inverted, checkpoint="universal")
    assert dice(fixed, moving, result.transform) > dice(fixed, moving, result.initial) + 0.2


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_model_of_the_dimension_of_the_images(ndim):
    grid = Grid.regular((40,) * ndim)
    fixed, moving = blob_image(grid), blob_image(grid, (4.0, -3.0, 2.0)[:ndim])
    result = learnreg.register(fixed, moving, checkpoint="universal")
    assert float(torch.nn.functional.mse_loss(result.warped.data, fixed.data)) < 0.5 * float(
        torch.nn.functional.mse_loss(moving.data, fixed.data)
    )
    assert of_dimension("universal", ndim) == ("universal-2d" if ndim == 2 else "universal")
    assert of_dimension("hippocampus", ndim) == "hippocampus"


def test_it_is_a_start():
    grid = Grid.regular((32, 32, 32))
    fixed, moving = blob_image(grid), blob_image(grid, (4.0, -3.0, 2.0))
    result = learnreg.register(fixed, moving, "rigid", initial="universal")
    assert not isinstance(result.initial, Affine)
    assert result.initial.displacement(grid).norm(dim=1).max() > 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_its_descriptors_are_a_similarity(ndim):
    """Lower for the same place in an inverted contrast than for another place."""
    grid = Grid.regular((32,) * ndim)
    fixed, moving = blob_image(grid), blob_image(grid, (6.0, 0.0, 0.0)[:ndim])
    similarity = FeatureSimilarity(DescriptorMaps(ndim=ndim))
    warped = (1 - fixed.data).requires_grad_()
    same = similarity(warped, fixed.data)
    same.backward()
    assert warped.grad.abs().sum() > 0
    assert float(same.detach()) < float(similarity(1 - moving.data, fixed.data))


def test_descriptors_of_another_network_are_refused():
    with pytest.raises(InputError, match="hippocampus holds a 3-D Oriented"):
        DescriptorMaps("hippocampus")
    with pytest.raises(InputError, match="holds a 3-D"):
        DescriptorMaps("hippocampus", ndim=2)


def test_a_whole_pass_is_trained_by_an_objective_alone():
    """Without landmarks, the gradient goes through the search."""
    grid = Grid.regular((16, 16))
    network = MatchingNetwork(2, (4, 8), descriptors=4).train()
    fixed, moving = (Image(torch.rand(1, 1, 16, 16), grid) for _ in range(2))
    network(fixed, moving).displacement(grid).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.head.weight.grad.abs().sum() > 0
