"""The transforms for MONAI and torchio give what plain ``register`` gives, on any affine."""

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelReader
from monai.transforms import Compose, Lambdad, LoadImaged
from monai.utils import MetaKeys, SpaceKeys

from learnreg.errors import InputError
from learnreg.integrations import RegisterClassicald, RegisterSubject, image_from_array
from learnreg.io import read_image, write_image
from learnreg.methods import IterativeMethod, register
from learnreg.objective import Objective
from learnreg.optimization import CenterOfMass, LinearStage
from learnreg.sampling import sample_labels
from learnreg.similarity import MSE
from tests.conftest import blob_image, make_grid

KEYS = ("fixed", "moving", "moving_labels")
pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path):
    fixed = blob_image(make_grid("oblique", (18, 20, 22), (1.6, 1.5, 1.9), torch.float32), radii=(12.0, 10, 8))
    moving = blob_image(make_grid("RAS", (20, 19, 24), (1.5, 1.7, 1.8), torch.float32), (3.0, -2.0, 1.5), (12.0, 10, 8))
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image.data[0], image.grid, tmp_path / f"{name}.nii.gz")
    write_image(moving.labels[0].to(torch.uint8), moving.grid, tmp_path / "moving_labels.nii.gz")
    return {key: str(tmp_path / f"{key}.nii.gz") for key in KEYS}


def converging():
    """A rigid registration that ends at its optimum, whatever the rounding of the affine that a reader returns."""
    stage = LinearStage(Objective(MSE()), "rigid", factors=(2, 1), iterations=(80, 80), tolerance=0.0, final_rate=1e-3)
    return IterativeMethod({"center": CenterOfMass(), "rigid": stage})


@pytest.fixture
def expected(files):
    fixed, moving = (
        read_image(files[key], labels=files["moving_labels"] if key == "moving" else None) for key in KEYS[:2]
    )
    result = register(fixed, moving, converging(), progress=False)
    labels = sample_labels(moving.labels, moving.grid, result.sampled.map_grid(fixed.grid), mode="nearest")
    assert (result.warped.data - fixed.data).abs().mean() < 0.5 * fixed.data.std()
    return result.warped.data[0, 0].permute(2, 1, 0), labels[0, 0].permute(2, 1, 0)


def in_lps(tensor):
    affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)) @ tensor.affine
    return MetaTensor(tensor.as_tensor(), affine=affine, meta={MetaKeys.SPACE: SpaceKeys.LPS})


@pytest.mark.parametrize("to_ras", [True, False])
def test_monai(files, expected, to_ras):
    """RAS affines, and LPS ones as MONAI's ITKReader gives them on request."""
    load = LoadImaged(KEYS, reader=NibabelReader(), ensure_channel_first=True)
    space = Lambdad(KEYS, lambda tensor: tensor if to_ras else in_lps(tensor))
    register_them = RegisterClassicald(labels=["moving_labels"], method=converging(), result="registration")
    data = Compose([load, space, register_them])(files)
    values, labels = expected
    assert isinstance(data["moving"], MetaTensor)
    assert torch.allclose(data["moving"].as_tensor()[0], values, atol=2e-3)
    assert (data["moving_labels"].as_tensor()[0].long() == labels).double().mean() > 0.999
    for key in KEYS[1:]:
        assert torch.allclose(data[key].affine, data["fixed"].affine)
        assert data[key].shape == data["fixed"].shape
    assert data["registration"].transform.ndim == 3
    affine = nibabel.load(files["fixed"]).affine
    np.testing.assert_allclose(
        data["moving"].affine.numpy(), affine if to_ras else np.diag([-1, -1, 1, 1]) @ affine, atol=1e-4
    )


def test_torchio(files, expected):
    tio = pytest.importorskip("torchio")
    subject = tio.Subject(
        fixed=tio.ScalarImage(files["fixed"]),
        moving=tio.ScalarImage(files["moving"]),
        moving_labels=tio.LabelMap(files["moving_labels"]),
    )
    found = tio.Compose([RegisterSubject(labels=["moving_labels"], method=converging())])(subject)
    values, labels = expected
    assert torch.allclose(found["moving"].data[0], values, atol=2e-3)
    assert (found["moving_labels"].data[0].long() == labels).double().mean() > 0.999
    np.testing.assert_allclose(found["moving"].affine, subject["fixed"].affine, atol=1e-6)
    assert subject["moving"].data.shape != found["moving"].data.shape  # the given one is left as it is


def test_an_affine_that_no_image_can_have():
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    for affine in (sheared, np.full((4, 4), np.nan)):
        with pytest.raises(InputError, match="sheared or not finite"):
            image_from_array(torch.zeros(1, 4, 4, 4), affine)
    with pytest.raises(InputError, match="RAS and LPS"):
        image_from_array(torch.zeros(1, 4, 4, 4), np.eye(4), space="XYZ")
    with pytest.raises(InputError, match="with an affine"):
        image_from_array(torch.zeros(4, 4), np.eye(4))
