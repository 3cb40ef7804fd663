import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.errors import InputError
from learnreg.io import check_pixels, image_from_sitk, read_image, write_image
from learnreg.writing import distinct_names, subject_name, together, write_atomically
from tests.conftest import blob_image


def save(array, path, **space):
    image = sitk.GetImageFromArray(array, isVector=False)
    for name, value in space.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, str(path))
    return path


def test_a_file_keeps_values_and_space(grid, tmp_path):
    image = blob_image(grid)
    write_image(image.data[0].float(), image.grid, tmp_path / "a.nii.gz")
    again = read_image(tmp_path / "a.nii.gz")
    assert torch.allclose(again.data, image.data.float())
    assert again.grid.matches(image.grid.to(torch.float32), tolerance=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_dicom_folder(tmp_path):
    values = (np.random.default_rng(0).random((4, 6, 5)) * 100).astype(np.int16)
    for z in range(4):
        image = sitk.GetImageFromArray(values[z : z + 1])
        image.SetSpacing((1.0, 1.0, 3.0))
        for tag, value in {
            "0020|000e": "1.2.3",
            "0020|0032": f"0\\0\\{3 * z}",
            "0020|0013": str(z),
            "0008|0060": "MR",
        }.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / f"{z}.dcm"))
        writer.Execute(image)
    image = read_image(tmp_path)
    assert np.array_equal(image.data[0, 0].numpy(), values.astype(np.float32))
    assert image.grid.spacing[0, 2] == pytest.approx(3.0)


def test_labels_and_mask_beside(tmp_path):
    a = save(np.random.rand(4, 5, 6).astype(np.float32), tmp_path / "a.nii.gz")
    b = save(np.arange(120).reshape(4, 5, 6).astype(np.int16), tmp_path / "b.nii.gz")
    image = read_image(a, labels=b, mask=b)
    assert image.labels.dtype == torch.int64
    assert int(image.labels.max()) == 119
    assert int((image.mask == 0).sum()) == 1


def test_failures(tmp_path):
    good = save(np.random.rand(4, 5, 6).astype(np.float32), tmp_path / "good.nii.gz")
    with pytest.raises(FileNotFoundError, match="No such image"):
        read_image(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image")
    with pytest.raises(ValueError, match="is damaged: .* is not a gzip file"):
        read_image(tmp_path / "text.nii.gz")
    with pytest.raises(ValueError, match="values a pixel"):
        image_from_sitk(sitk.Image([4, 4], sitk.sitkVectorUInt8, 3))
    with pytest.raises(ValueError, match="is 4-D"):
        read_image(save(np.zeros((2, 4, 5, 6), np.float32), tmp_path / "four.nii.gz"))
    holes = np.random.rand(4, 5, 6).astype(np.float32)
    holes[1, 2, 3] = np.inf
    with pytest.raises(ValueError, match="1 infinite value"):
        read_image(save(holes, tmp_path / "infinite.nii.gz"))
    with pytest.raises(ValueError, match="is NaN"):
        read_image(save(np.full((4, 5, 6), np.nan, np.float32), tmp_path / "nan.nii.gz"))
    other = save(np.zeros((4, 5, 7), np.uint8), tmp_path / "shape.nii.gz")
    with pytest.raises(ValueError, match="labels .* have shape"):
        read_image(good, labels=other)
    moved = save(np.zeros((4, 5, 6), np.uint8), tmp_path / "moved.nii.gz", Origin=(50.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="different places"):
        read_image(good, mask=moved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 DICOM series"):
        read_image(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["a.mgz", "a.mgh", "nifti2.nii.gz", "nifti2.nii"])
def test_files_that_itk_does_not_read_are_read_as_by_nibabel(kind, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    turn = np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.0, 1.5, 2.0], [10.0, -20.0, 5.0]
    image = nibabel.MGHImage if kind.startswith("a.") else nibabel.Nifti2Image
    nibabel.save(image(values, affine), tmp_path / kind)
    found = read_image(tmp_path / kind)
    np.testing.assert_array_equal(found.data[0, 0].numpy(), values.T)
    for index in ((0, 0, 0), (3, 1, 4)):
        ras = affine @ [*index, 1.0]
        lps = found.grid.points[0][index[::-1]].tolist()
        assert lps == pytest.approx([-ras[0], -ras[1], ras[2]], abs=1e-4)
    assert subject_name(tmp_path / kind) == kind.partition(".")[0]
    (tmp_path / kind).write_bytes((tmp_path / kind).read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        read_image(tmp_path / kind)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_nan_is_left_out_of_the_mask(suffix, tmp_path):
    values = np.random.rand(4, 5, 6).astype(np.float32) + 1
    values[1, 2, 3] = np.nan
    image = read_image(save(values, tmp_path / f"nan{suffix}"))
    assert torch.equal(image.mask[0, 0], torch.from_numpy(~np.isnan(values)).float())
    assert torch.equal(image.data[0, 0], torch.from_numpy(np.nan_to_num(values)))
    inside = np.zeros((4, 5, 6), np.uint8)
    inside[1] = 1
    image = read_image(tmp_path / f"nan{suffix}", mask=save(inside, tmp_path / "mask.nii.gz"))
    assert int(image.mask.sum()) == 29
    only = (np.isnan(values)).astype(np.uint8)
    with pytest.raises(ValueError, match="covers only voxels"):
        read_image(tmp_path / f"nan{suffix}", mask=save(only, tmp_path / "only.nii.gz"))


def test_nothing_half_written(tmp_path):
    def fails(part):
        with open(part, "w") as file:
            file.write("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "a.txt", fails)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "message"),
    [(OSError(28, "No space left on device"), "No space left on device"), (PermissionError(13, "Denied"), "Denied")],
)
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(raised, message, tmp_path):
    def write(part):
        raise raised

    with pytest.raises(InputError, match=rf"image\.nii cannot be written: {message}"):
        write_atomically(tmp_path / "image.nii", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.float64])
def test_labels_stay_integers(tmp_path, kind):
    values = np.zeros((4, 5, 6), kind)
    largest = 2**24 + 1 if np.issubdtype(kind, np.floating) else min(np.iinfo(kind).max, 614454277)
    values[1:3], values[2, 2] = largest, largest - 1
    image, labels = (save(v, tmp_path / f"{n}.mha") for n, v in (("image", values * 0.5), ("labels", values)))
    found = read_image(image, labels=labels).labels
    assert np.array_equal(found[0, 0].numpy(), values.astype(np.int64))


def test_labels_that_are_no_integers_and_empty_masks_are_refused(tmp_path):
    image = save((0.25 + 0.5 * np.random.rand(4, 5, 6)).astype(np.float32), tmp_path / "image.mha")
    with pytest.raises(ValueError, match=r"image\.mha has 120 values that are not integers"):
        read_image(image, labels=image)
    empty = save(np.zeros((4, 5, 6), np.uint8), tmp_path / "empty.mha")
    with pytest.raises(ValueError, match=r"mask .*empty\.mha is empty"):
        read_image(image, mask=empty)


FULL_DISK = """
import resource, sys, torch, learnreg
from learnreg.io import write_image
from learnreg.transforms import write_transform
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
grid = learnreg.Grid.regular((32, 32, 32))
try:
    if sys.argv[1].endswith(".h5"):
        write_transform(learnreg.Displacement(torch.rand(1, 3, *grid.shape), grid), grid, sys.argv[1])
    else:
        write_image(torch.rand(1, *grid.shape), grid, sys.argv[1])
except learnreg.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii", "image.mha", "image.nrrd", "transform.h5"])
@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, name):
    """The size of files is limited by the operating system, as on a full disk: writers fail halfway."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path / name], capture_output=True, text=True)
    assert str(tmp_path / name) in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_files_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), together(tmp_path / "out") as part:
        (part / "first").write_text("1")
        (part / "second").write_text(str(1 / 0))
    assert not (tmp_path / "out").exists()
    with together(tmp_path / "out") as part:
        (part / "in").mkdir()
        (part / "in" / "first").write_text("1")
    assert (tmp_path / "out" / "in" / "first").read_text() == "1"


@pytest.mark.parametrize(
    ("file", "name"), [("a/RMS.20141210_MCH.nii.gz", "RMS.20141210_MCH"), ("1.2.840.dcm", "1.2.840"), ("x.NII", "x")]
)
def test_a_name_ends_at_its_suffix(file, name):
    assert subject_name(file) == name


def test_equal_names_are_told_apart_by_their_folders():
    files = [Path("s1/a/t1.nii.gz"), Path("s2/a/t1.nii.gz"), Path("s2/b/t1.v2.nii.gz")]
    assert distinct_names(files) == ["s1_a_t1", "s2_a_t1", "t1.v2"]
    assert distinct_names([]) == []
    with pytest.raises(ValueError, match=r"t1\.nii\.gz have one name"):
        distinct_names([files[0], files[0]])


def test_a_format_of_planes_holds_no_volume():
    check_pixels("a.png", sitk.sitkUInt8, 2)
    check_pixels("a.nii.gz", sitk.sitkFloat32, 3)
    check_pixels("a.tif", sitk.sitkFloat32, 3)
    with pytest.raises(InputError, match=r"a\.png cannot hold a 3-D result"):
        check_pixels("a.png", sitk.sitkUInt8, 3)
