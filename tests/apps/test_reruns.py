"""A command that is run again with the same number of threads writes the same bits."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import learnreg
from learnreg.apps.main import main
from learnreg.io import write_image
from tests.apps.test_kills import FAST, METHOD
from tests.conftest import blob_image, make_grid

METHODS = {"fast": FAST, "affine": METHOD}
RUNS = {"classical": (None, 0, 1), "two threads": (None, 0, 2), "one-shot": ("hippocampus", 0, 1)}
RUNS["refined"] = ("hippocampus", 3, 1)


@pytest.fixture
def folder(tmp_path):
    """Three images of enough voxels that threads share them, and methods."""
    for k in range(3):
        image = blob_image(make_grid("RAS", (34, 36, 38), 1.0, torch.float32), (k, -k, 0.5 * k), (12.0, 9.0, 8.0))
        noise = 0.01 * torch.randn(image.data.shape, generator=torch.Generator().manual_seed(k))
        write_image((image.data + noise)[0], image.grid, tmp_path / "images" / f"{k}.nii.gz")
    for name, text in METHODS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def bits(folder):
    """The bits of all images and transforms of a folder."""
    found = {}
    for file in sorted(folder.rglob("*.nii.gz")):
        found[file.relative_to(folder)] = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).tobytes()
    for file in sorted(folder.rglob("*.h5")):
        grid = sitk.ReadImage(str(next(folder.glob("*.nii.gz"))))
        place = grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
        field = sitk.TransformToDisplacementField(sitk.ReadTransform(str(file)), sitk.sitkVectorFloat64, *place)
        found[file.relative_to(folder)] = sitk.GetArrayFromImage(field).tobytes()
    return found


@pytest.mark.parametrize("how", RUNS)
def test_register(how, folder):
    checkpoint, refine, threads = RUNS[how]
    method = str(folder / "fast.yaml") if checkpoint is None else None
    files = folder / "images" / "0.nii.gz", folder / "images" / "1.nii.gz"
    torch.set_num_threads(threads)
    results = []
    for seed in range(2):  # no result depends on the global generators
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(learnreg.register(*files, method, checkpoint=checkpoint, refine=refine, progress=False))
    first, second = results
    assert first.sampled.field.norm(dim=1).max() > 0.1  # mm
    assert torch.equal(first.sampled.field, second.sampled.field)
    assert torch.equal(first.warped.data, second.warped.data)


@pytest.mark.parametrize("command", ["register {}/images/0.nii.gz {}/images/1.nii.gz", "template {}/images --rounds 2"])
def test_files(command, folder):
    for k in range(2):
        torch.manual_seed(k)
        np.random.seed(k)
        words = f"{command} --method {{}}/affine.yaml -o {{}}/out{k} --quiet".replace("{}", str(folder))
        main(words.split())
    first, second = bits(folder / "out0"), bits(folder / "out1")
    assert len(first) >= 2
    assert first == second
