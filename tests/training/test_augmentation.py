"""A pair draws the same augmentation wherever it is augmented."""

import pytest
import pytorch_lightning as pl
import torch

from learnreg.data import Compose, Intensity, ModelSpace, RandomTransform, RegistrationData
from learnreg.networks import UNet
from learnreg.objective import Objective
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


def trained(folder, augment_on, augmentation, *, workers=0, batch_size=2):
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


@pytest.mark.parametrize("workers", [0, 1])
def test_the_device_draws_what_the_loader_draws(folder, workers):
    expected, weights = trained(folder, "loader", augmentation(), workers=workers)
    batches, others = trained(folder, "device", augmentation(), workers=workers)
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
