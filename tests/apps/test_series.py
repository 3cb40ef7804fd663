"""A series with known motion: parameters, transforms, the registered file."""

import math

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.apps.series import series
from learnreg.errors import InputError, MissingFileError
from learnreg.io import read_image, read_series, to_sitk
from learnreg.methods.series import framewise_displacement, motion_parameters
from learnreg.transforms import Affine, Displacement, read_transform
from learnreg.warping import warp
from tests.conftest import blob_image, make_grid

MOTION = [(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), (1.5, -0.8, 0.4, 0.02, -0.03, 0.05), (-1.0, 1.2, -0.6, -0.04, 0.01, -0.03)]


def head(grid):
    image = blob_image(grid, radii=(15.0, 11.0, 7.5))
    bumps = torch.sin(grid.points / 3.0).prod(-1)[:, None] * 0.15
    return image.with_data(image.data + bumps * (image.data > 0.3))


def known(motion, grid):
    """The transform of a motion in RAS, written out for LPS: x and y, and the rotations about them, change sign."""
    tx, ty, tz, rx, ry, rz = motion
    c, s = np.cos, np.sin
    turn_x = np.array([[1, 0, 0], [0, c(rx), -s(rx)], [0, s(rx), c(rx)]])
    turn_y = np.array([[c(ry), 0, s(ry)], [0, 1, 0], [-s(ry), 0, c(ry)]])
    turn_z = np.array([[c(rz), -s(rz), 0], [s(rz), c(rz), 0], [0, 0, 1]])
    flip = np.diag([-1.0, -1.0, 1.0])
    turn = torch.tensor(flip @ turn_z @ turn_y @ turn_x @ flip).float()
    return Affine.about(turn[None], torch.tensor([[-tx, -ty, tz]]), grid.center)


@pytest.fixture
def moving_head(tmp_path):
    grid = make_grid("oblique", (22, 24, 26), (1.6, 1.7, 1.8), torch.float32, origin=(20.0, -30.0, 10.0))
    centered = head(make_grid("oblique", (22, 24, 26), (1.6, 1.7, 1.8), torch.float32))
    still = centered.__class__(centered.data * 900, grid)
    volumes = [warp(still, known(motion, grid).inverse(), grid) for motion in MOTION]
    joined = sitk.JoinSeries([to_sitk(volume.data[0], grid) for volume in volumes], 0.0, 2.5)
    sitk.WriteImage(joined, str(tmp_path / "bold.nii.gz"))
    return tmp_path / "bold.nii.gz", grid


@pytest.mark.parametrize("motion", MOTION)
def test_motion_parameters_are_those_of_a_known_motion(motion):
    grid = make_grid("oblique", origin=(20.0, -30.0, 10.0), dtype=torch.float32)
    np.testing.assert_allclose(motion_parameters(known(motion, grid), grid), motion, atol=1e-5)
    field = Displacement(known(motion, grid).displacement(grid), grid)
    np.testing.assert_allclose(motion_parameters(field, grid), motion, atol=1e-4)


def test_framewise_displacement_is_that_of_its_definition():
    motion = np.array(MOTION)
    expected = np.abs(motion[1, :3]).sum() + 50 * np.abs(motion[1, 3:]).sum()
    distance = framewise_displacement(motion)
    assert math.isnan(distance[0])
    assert distance[1] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("to", [0, "mean"])
def test_a_series_of_known_motion(moving_head, tmp_path, to):
    """Motion relative to the first volume; up to 2.5 degrees and 1.7 mm, in voxels of 1.6 to 1.8 mm."""
    file, grid = moving_head
    out = tmp_path / "out"
    metrics = series(file, out, to=to, progress=False)
    rows = [line.split("\t") for line in (out / "motion.tsv").read_text().splitlines()]
    assert rows[0] == [*("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"), "framewise_displacement"]
    assert rows[1][-1] == "n/a"
    transforms = [read_transform(out / "transforms" / f"{k:04d}.h5") for k in range(3)]
    points = grid.points[:, 6:-6:3, 6:-6:3, 6:-6:3]
    for motion, transform in zip(MOTION, transforms, strict=True):
        found = transform(transforms[0].inverse()(points))
        assert (found - known(motion, grid)(points)).norm(dim=-1).mean() < 0.2  # mm
    if to == 0:
        values = np.array(rows[1:], dtype=object)[:, :6].astype(float)
        np.testing.assert_allclose(values[:, :3], np.array(MOTION)[:, :3], atol=0.15)
        np.testing.assert_allclose(values[:, 3:], np.array(MOTION)[:, 3:], atol=0.015)  # 0.17 mm at 11 mm
        assert metrics["framewise_displacement_mm"]["max"] == pytest.approx(
            max(float(r[-1]) for r in rows[2:]), abs=1e-5
        )
    before, after = nibabel.load(file), nibabel.load(out / "registered.nii.gz")
    assert after.shape == before.shape
    assert after.header.get_zooms() == pytest.approx(before.header.get_zooms())
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-3)
    spread = [np.asarray(image.dataobj)[6:-6, 6:-6, 6:-6].std(axis=-1).mean() for image in (before, after)]
    assert spread[1] < 0.3 * spread[0]
    with pytest.raises(InputError, match="already holds"):
        series(file, out, to=to, progress=False)


def test_a_series_is_read_once_and_as_its_time_points(moving_head):
    file, _ = moving_head
    for time, image in enumerate(read_series(file)):
        alone = read_image(file, time=time)
        assert torch.equal(image.data, alone.data)
        assert image.grid.matches(alone.grid)


def test_what_is_no_series_is_told(moving_head, tmp_path):
    file, grid = moving_head
    sitk.WriteImage(to_sitk(torch.rand(grid.shape), grid), str(tmp_path / "one.nii.gz"))
    with pytest.raises(InputError, match="no time points"):
        series(tmp_path / "one.nii.gz", tmp_path / "out")
    with pytest.raises(MissingFileError, match="No such image"):
        series(tmp_path / "none.nii.gz", tmp_path / "out")
    with pytest.raises(InputError, match="from 0 to 2"):
        series(file, tmp_path / "out", to=3)
    assert not (tmp_path / "out").exists()
