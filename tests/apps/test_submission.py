"""The challenge's files, read as its evaluation script reads them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from learnreg.apps.main import main
from learnreg.apps.submission import submission_name, write_displacement
from learnreg.grid import Grid
from learnreg.io import read_image, write_image
from learnreg.metrics import dice_scores
from learnreg.transforms import Affine, Displacement
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid
from tests.test_fields import smooth_field


@pytest.mark.parametrize("orientations", [("LPS", "LPS"), ("RAS", "oblique"), ("permuted", "RAS")])
def test_the_evaluation_script_finds_the_same_overlap(tmp_path, orientations):
    fixed_grid = make_grid(orientations[0], (20, 24, 22), (1.5, 1.2, 1.8), torch.float32)
    moving_grid = make_grid(orientations[1], (22, 20, 26), (1.3, 1.6, 1.4), torch.float32)
    images = blob_image(fixed_grid), blob_image(moving_grid, (3.0, -2.0, 1.0))
    files = [tmp_path / f"Blobs_000{k}_0000.nii.gz" for k in (1, 2)]
    for image, file in zip(images, files, strict=True):
        write_image(image.labels[0].to(torch.int16), image.grid, file)
    fixed, moving = (read_image(file, labels=file) for file in files)
    transform = Displacement(smooth_field(fixed.grid, 2.0).float(), fixed.grid)
    output = tmp_path / submission_name(*files)
    write_displacement(transform, fixed.grid, moving.grid, output)

    field = nib.load(output).get_fdata()
    fixed_labels, moving_labels = (nib.load(file).get_fdata() for file in files)
    assert field.shape == (*fixed_labels.shape, 3)
    identity = np.stack(np.meshgrid(*map(np.arange, fixed_labels.shape), indexing="ij"))
    labels = [int(v) for v in np.unique(fixed_labels) if v]
    theirs = map_coordinates(moving_labels, identity + field.transpose(3, 0, 1, 2), order=0)
    expected = [
        2 * ((theirs == v) & (fixed_labels == v)).sum() / ((theirs == v).sum() + (fixed_labels == v).sum())
        for v in labels
    ]
    ours = dice_scores(warp(moving, transform, fixed.grid).labels, fixed.labels, labels)[0]
    assert min(expected) > 0.1
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)  # ties of the nearest neighbor

    linear = map_coordinates(moving_labels, identity + field.transpose(3, 0, 1, 2), order=1)
    values = warp(moving, transform, fixed.grid).data[0, 0].numpy().T
    inside = slice(4, -4)
    np.testing.assert_allclose(linear[inside, inside, inside], values[inside, inside, inside], atol=2e-3)


def test_voxels_of_the_moving_image_count(tmp_path):
    fixed, moving = Grid.regular((5, 6, 7), spacing=2.0), Grid.regular((5, 6, 7), spacing=1.0)
    write_displacement(Affine.identity(3), fixed, moving, tmp_path / "same.nii.gz")
    same_place = nib.load(tmp_path / "same.nii.gz").get_fdata()
    middle = np.array([3, 2.5, 2])  # (x, y, z), the center of both
    index = np.array([6, 5, 4])
    np.testing.assert_allclose(same_place[6, 5, 4], (index - middle) * 2 + middle - index, atol=1e-5)


def test_a_submission_holds_the_pairs_of_its_table(tmp_path, capsys):
    """A former result is refused, and with --overwrite none of its displacements is left."""
    grid = Grid.regular((12, 12, 12), 2.0)
    for k in range(3):
        image = blob_image(grid, (float(k), 0.0, 0.0))
        write_image(image.data[0], grid, tmp_path / "images" / f"Blobs_000{k}_0000.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    method = tmp_path / "short.yaml"
    method.write_text(
        "defaults: [/method/affine@_here_, _self_]\nstages: {rotation: null, affine: {factors: [2], iterations: [3]}}\n"
    )
    common = ["evaluate", str(tmp_path), "--method", str(method), "--quiet", "--submission", "learn2reg"]

    def written():
        return sorted(file.name for file in (tmp_path / "out" / "submission").iterdir())

    main([*common, "-o", str(tmp_path / "out")])
    assert written() == ["disp_0000_0002.nii.gz", "disp_0002_0000.nii.gz"]  # the one in the middle is its own partner
    with pytest.raises(SystemExit, match="2"):
        main([*common, "-o", str(tmp_path / "out"), "--block", "0:2"])
    assert "already holds table.md, cases.csv, metrics.json, submission; give another folder, or --overwrite" in (
        capsys.readouterr().err
    )
    main([*common, "-o", str(tmp_path / "out"), "--block", "0:2", "--overwrite"])
    assert written() == ["disp_0000_0001.nii.gz", "disp_0001_0000.nii.gz"]
    assert len((tmp_path / "out" / "cases.csv").read_text().splitlines()) == 5
    assert (tmp_path / "out" / "mine.txt").exists()


def test_names(tmp_path):
    assert submission_name("a/L_0001_0000.nii.gz", "b/L_0002_0001.nii.gz") == "disp_0001_0002.nii.gz"
    assert submission_name("L_0001_0001.nii.gz", "L_0001_0000.nii.gz") == "disp_0001_0001_0001_0000.nii.gz"
    with pytest.raises(ValueError, match="four digits"):
        submission_name("brain.nii.gz", "L_0002_0000.nii.gz")
    with pytest.raises(ValueError, match="3-D"):
        flat = Grid.regular((4, 5))
        write_displacement(Affine.identity(2), flat, flat, tmp_path / "disp_0001_0002.nii.gz")
    assert not list(tmp_path.iterdir())
