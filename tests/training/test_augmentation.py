"""A pair draws the same augmentation wherever it is augmented."""

import pytest
import pytorch_lightning as pl
import SimpleITK as sitk
import torch

from learnreg.data import Compose, Intensity, ModelSpace, RandomTransform, RegistrationData
from learnreg.data.augmentation import reoriented
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks import UNet
from learnreg.objective import Objective
from learnreg.orientation import Orientation
from learnreg.sampling import sample
from learnreg.similarity import MSE
from learnreg.training import RegistrationModule
from tests.data.test_data import write

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("LeafSpec", "many workers")]


class Seen(pl.Callback):
    """Keeps the batches that a module trains on."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def trained(folder, augment_on, augmentation, *, workers=0, batch_size=2, orientations=False):
    torch.manual_seed(0)
    space = ModelSpace(1.0, (16, 16, 16))
    data = RegistrationData(
        folder,
        space,
        train=[0, 4],
        validation=[4, 6],
        batch_size=batch_size,
        augmentation=augmentation,
        augment_on=augment_on,
        orientations=orientations,
        num_workers=workers,
    )
    module = RegistrationModule(UNet(3, (4, 8)), Objective(MSE()), lambda weights: torch.optim.SGD(weights, lr=0.05))
    seen = Seen()
    pl.Trainer(
        accelerator="cpu",
        max_steps=5,
        limit_train_batches=3,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(module, datamodule=data)
    return seen.batches, module.state_dict()


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write(tmp_path / "images" / f"s{i}.nii.gz", i)
        write(tmp_path / "labels" / f"s{i}.nii.gz", i, labels=True)
    return tmp_path


def augmentation():
    from monai.transforms import RandGaussianNoise

    noise = Intensity(RandGaussianNoise(prob=1.0, std=0.05))
    return Compose([RandomTransform(bend=1.0, bias=0.2, noise=0.05, probability=0.8), noise])


@pytest.mark.parametrize(("workers", "orientations"), [(0, False), (1, False), (0, True)])
def test_the_device_draws_what_the_loader_draws(folder, workers, orientations):
    expected, weights = trained(folder, "loader", augmentation(), workers=workers, orientations=orientations)
    batches, others = trained(folder, "device", augmentation(), workers=workers, orientations=orientations)
    assert len(batches) == len(expected) == 5
    for batch, reference in zip(batches, expected, strict=True):
        for image, other in zip(batch, reference, strict=True):
            assert torch.equal(image.data, other.data)
            assert torch.equal(image.labels, other.labels)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    plain, _ = trained(folder, "auto", None)
    assert not torch.equal(plain[0][0].data, expected[0][0].data)


def test_validation_pairs_are_not_changed_on_the_device(folder):
    def refuse(image):
        raise AssertionError

    data = RegistrationData(
        folder, ModelSpace(1.0, (16, 16, 16)), train=[0, 4], validation=[4, 6], augmentation=refuse, augment_on="device"
    )
    module = RegistrationModule(UNet(3, (4, 8)), Objective(MSE()), lambda weights: torch.optim.SGD(weights, lr=0.05))
    pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(module, datamodule=data)
    with pytest.raises(ValueError, match="augment_on is auto, loader or device, got 'gpu'"):
        RegistrationData(folder, ModelSpace(1.0, (16, 16, 16)), train=[0, 4], validation=[4, 6], augment_on="gpu")


class TestOrientations:
    """Images whose headers lost the orientation are images with other axes."""

    @pytest.mark.parametrize("shape", [(5, 7), (4, 6, 8)])
    def test_points_keep_their_values(self, shape):
        """Against SimpleITK: the image with the header of the other orientation, resampled."""
        torch.manual_seed(0)
        ndim = len(shape)
        landmarks = 3.0 * torch.rand(1, 9, ndim)
        grid = Grid.regular(shape, [1.0, 2.0, 3.0][:ndim], origin=[0.5] * ndim)
        ones = torch.ones(1, 1, *shape)
        image = Image(torch.rand(1, 1, *shape), grid, ones, ones.long(), landmarks)
        for _ in range(6):
            orientation = Orientation.random(ndim)
            order, flips = orientation.order, orientation.flips
            changed = reoriented(image, orientation)
            assert changed.mask.shape[2:] == changed.labels.shape[2:] == changed.grid.shape
            assert torch.allclose(changed.grid.center, image.grid.center, atol=1e-5)
            assert torch.allclose(
                sample(changed.data, changed.grid, changed.landmarks), sample(image.data, grid, landmarks), atol=1e-5
            )
            permuted = sitk.PermuteAxes(
                sitk.GetImageFromArray(image.data[0, 0].numpy()), [ndim - 1 - axis for axis in reversed(order)]
            )
            reference = sitk.GetArrayFromImage(sitk.Flip(permuted, list(reversed(flips))))
            assert torch.equal(changed.data[0, 0], torch.from_numpy(reference))

    def test_all_orientations_are_drawn(self):
        torch.manual_seed(0)
        assert len({str(Orientation.random(3)) for _ in range(2000)}) == 48
        assert len({str(Orientation.random(2)) for _ in range(200)}) == 8

    def test_both_images_are_turned_alike(self, folder):
        plain, _ = trained(folder, "loader", None)
        turned, _ = trained(folder, "loader", None, orientations=True)
        differences = 0
        for batch, reference in zip(turned, plain, strict=True):
            for k in range(2):
                alike = [
                    [
                        torch.equal(reoriented(item(old, k), orientation).data, item(new, k).data)
                        for orientation in Orientation.every(3)
                    ]
                    for old, new in zip(reference, batch, strict=True)
                ]
                assert alike[0] == alike[1]
                assert sum(alike[0]) == 1
                differences += not torch.equal(batch[0].data[k], reference[0].data[k])
        assert differences >= 8

    def test_prescribed_pairs_are_turned_and_not_changed(self, folder):
        files = [str(folder / "images" / f"s{i}.nii.gz") for i in range(3)]
        table = folder / "pairs.csv"
        table.write_text("fixed,moving,split\n" + f"{files[0]},{files[1]},train\n{files[1]},{files[2]},validation\n")
        data = RegistrationData(
            table, ModelSpace(1.0, (16, 16, 16)), augmentation=RandomTransform(), augment_on="loader", orientations=True
        )
        torch.manual_seed(0)
        data.setup()
        fixed = data._training_pairs()[0][0]
        plain = data.load(data.pairs("train")[0][0])
        assert not torch.equal(fixed.data, plain.data)
        assert torch.equal(fixed.data.flatten().sort().values, plain.data.flatten().sort().values)

    @pytest.mark.parametrize(
        ("space", "batch_size", "message"),
        [
            (ModelSpace([1.0, 1.0, 2.0], (16, 16, 16)), 1, r"one data.space.spacing for all axes"),
            (ModelSpace(1.0, (16, 32, 16)), 2, r"data.space.shape=\[16, 32, 16\] needs equal sides"),
            (ModelSpace(1.0), 2, "needs equal sides"),
        ],
    )
    def test_spaces_without_turns(self, folder, space, batch_size, message):
        with pytest.raises(InputError, match=message):
            RegistrationData(folder, space, batch_size=batch_size, orientations=True)
        RegistrationData(folder, ModelSpace(1.0, (16, 32, 16)), orientations=True)


def item(images, index):
    """One image of a batch."""
    return Image(images.data[index : index + 1], images.grid)
