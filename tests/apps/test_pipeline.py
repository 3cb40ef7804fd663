"""One plain function for pipelines: files in, files and metrics out."""

import pytest
import torch

import learnreg
from learnreg.apps.pipeline import register_files
from learnreg.errors import InputError, MissingFileError
from learnreg.io import read_image, write_image
from tests.conftest import blob_image, make_grid

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path):
    for name, center in (("fixed", (0.0, 0.0, 0.0)), ("moving", (3.0, -2.0, 1.0))):
        image = blob_image(make_grid("oblique", (18, 20, 22), (1.6, 1.5, 1.9), torch.float32), center, (12.0, 10, 8))
        write_image(image.data[0], image.grid, tmp_path / f"{name}.nii.gz")
        write_image(image.labels[0].to(torch.uint8), image.grid, tmp_path / f"{name}_labels.nii.gz")
    return tmp_path


def test_files_and_metrics_are_those_of_register(files):
    fixed, moving = files / "fixed.nii.gz", files / "moving.nii.gz"
    done = register_files(
        fixed,
        moving,
        files / "out",
        method="rigid",
        initial="moments",
        fixed_labels=files / "fixed_labels.nii.gz",
        moving_labels=files / "moving_labels.nii.gz",
        inverse=True,
    )
    plain = learnreg.register(fixed, moving, "rigid", initial="moments", progress=False)
    assert torch.allclose(read_image(done.warped).data, plain.warped.data, atol=1e-3)
    points = plain.fixed.grid.corners.points
    forward, back = learnreg.read_transform(done.transform), learnreg.read_transform(done.inverse)
    assert torch.allclose(forward(points), plain.transform(points), atol=1e-3)
    assert torch.allclose(back(forward(points)), points, atol=1e-3)
    assert done.metrics["after"]["dice"] > max(0.9, done.metrics["before"]["dice"])
    assert done.figure.exists()
    with pytest.raises(InputError, match="already holds"):
        register_files(fixed, moving, files / "out", method="rigid")


def test_what_cannot_be_used_leaves_nothing(files):
    with pytest.raises(MissingFileError, match="none"):
        register_files(files / "none.nii.gz", files / "moving.nii.gz", files / "out", method="rigid")
    with pytest.raises(InputError, match="Unknown method"):
        register_files(files / "fixed.nii.gz", files / "moving.nii.gz", files / "out", method="stiff")
    assert not (files / "out").exists()
