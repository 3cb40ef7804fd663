"""Geometry that DICOM series and NIfTI headers state; truth by construction, and by nibabel."""

import locale

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from learnreg.errors import InputError
from learnreg.headers import read_header
from learnreg.io import check_pixels, read_image

SPACING = 3.0


def series(folder, *, positions=None, tilt=0.0, turned=()):
    """Write a DICOM series, one file per position of its slices along z."""
    folder.mkdir()
    positions = SPACING * np.arange(8) if positions is None else positions
    slope = np.deg2rad(tilt)
    for k, z in enumerate(positions):
        slice_ = sitk.GetImageFromArray(np.full((1, 12, 10), 10 * k, np.int16))
        cosines = [1, 0, 0, 0, np.cos(slope), np.sin(slope)]
        if k in turned:
            cosines = [0, 1, 0, -1, 0, 0]
        tags = {
            "0020|000e": "1.2.3",
            "0020|000d": "1.2",
            "0020|0013": str(k + 1),
            "0008|0060": "CT",
            "0020|0032": f"0\\0\\{z:g}",
            "0020|0037": "\\".join(f"{c:.6f}" for c in cosines),
        }
        slice_.SetSpacing((1.0, 1.0, SPACING))
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(slice_)
    return folder


def test_a_regular_series_is_read(tmp_path):
    grid = read_image(series(tmp_path / "ct")).grid
    assert grid.shape == (8, 12, 10)
    assert float(grid.spacing[0, 2]) == pytest.approx(SPACING)


def test_reading_dicom_keeps_the_locale(tmp_path):
    """GDCM leaves that of C, in which other libraries fail to read their own files."""
    folder, before = series(tmp_path / "ct"), locale.setlocale(locale.LC_ALL)
    for place in ("C.UTF-8", before):
        locale.setlocale(locale.LC_ALL, place)
        read_image(folder)
        read_header(folder)
        check_pixels("out.dcm", sitk.sitkInt16, 2)
        assert locale.setlocale(locale.LC_ALL) == place


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tilt": 20.0}, "gantry was tilted by 20.0 degrees"),
        ({"positions": SPACING * np.array([0, 1, 2, 5, 6, 7])}, "3.00 to 9.00 mm apart, the widest gap after slice 3"),
        ({"positions": SPACING * np.array([0, 0, 1, 1, 2, 2])}, "6 images at 3 positions"),
        ({"turned": (3,)}, "not parallel|holds 2 DICOM series"),
    ],
)
def test_a_series_that_is_no_box_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        read_image(series(tmp_path / "ct", **settings))


def nifti(file, affine, *, qform=None, shape=(12, 11, 10)):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_sform(affine, 2)
    image.header.set_qform(affine if qform is None else qform, 1, strip_shears=True)
    nibabel.save(image, file)
    return file


def shifted(x):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = x
    return affine


def test_the_sform_is_used_where_the_qform_disagrees(tmp_path):
    file = nifti(tmp_path / "a.nii.gz", shifted(0), qform=shifted(40))
    with pytest.warns(UserWarning, match="sform and qform of the header are 40.0 mm apart; the sform is used"):
        image = read_image(file)
    expected = np.diag([-1, -1, 1, 1]) @ nibabel.load(file).affine
    assert np.allclose(image.grid.affine[0].numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_agreeing_forms_say_nothing(tmp_path):
    read_image(nifti(tmp_path / "a.nii.gz", shifted(5)))


def test_rounded_cosines_are_made_orthonormal(tmp_path):
    angle = np.deg2rad(17)
    affine = np.eye(4)
    affine[:2, :2] = np.round([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], 2)
    grid = read_image(nifti(tmp_path / "a.nii.gz", affine)).grid
    direction = grid.direction[0].double().numpy()
    assert np.allclose(direction @ direction.T, np.eye(3), atol=1e-6)
    corner = np.array([11, 10, 9, 1.0])
    assert np.linalg.norm((np.diag([-1, -1, 1, 1]) @ affine - grid.affine[0].numpy()) @ corner) < 0.2


def test_shear_is_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(InputError, match="the affine of the header is sheared"):
        read_image(nifti(tmp_path / "a.nii.gz", affine))


def test_itk_says_why_it_cannot_read(tmp_path):
    (tmp_path / "a.mha").write_text("ObjectType = Image\nNDims = 3\n")
    with pytest.raises(InputError, match=r"a\.mha cannot be read as an image: .+\. Formats that can be read"):
        read_image(tmp_path / "a.mha")


def test_several_series_are_listed_by_name(tmp_path):
    for number, name in enumerate(("T1 axial", "T2 axial")):
        for k in range(2 + number):
            slice_ = sitk.GetImageFromArray(np.full((1, 6, 5), k, np.int16))
            for tag, value in {
                "0020|000e": f"1.2.{number}",
                "0008|103e": name,
                "0020|0013": str(k),
                "0020|0032": f"0\\0\\{k}",
            }.items():
                slice_.SetMetaData(tag, value)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(tmp_path / f"{number}-{k}.dcm"))
            writer.Execute(slice_)
    with pytest.raises(InputError, match=r"2 DICOM series: T1 axial \(2 files.*; T2 axial \(3 files"):
        read_image(tmp_path)


def add_series(folder, uid, name, count, value):
    """Slices of one DICOM series, 1 mm apart."""
    for k in range(count):
        plane = sitk.GetImageFromArray(np.full((1, 6, 5), value, np.int16))
        for tag, text in {
            "0020|000e": uid,
            "0008|103e": name,
            "0020|0013": str(k),
            "0020|0032": f"0\\0\\{k}",
        }.items():
            plane.SetMetaData(tag, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid}-{k}.dcm"))
        writer.Execute(plane)


def test_a_series_is_chosen_by_its_uid(tmp_path):
    add_series(tmp_path, "1.2.1", "T1", 2, 10)
    add_series(tmp_path, "1.2.15", "T2", 3, 20)  # begins like the first one
    add_series(tmp_path, "1.3.7", "PD", 4, 30)
    for uid, count, value in (("1.2.1", 2, 10), ("1.2.15", 3, 20), ("1.3", 4, 30), ("1.3.7", 4, 30)):
        image = read_image(f"{tmp_path}:{uid}")
        assert image.grid.shape == (count, 6, 5)
        assert image.data.unique().tolist() == [value]
    with pytest.raises(InputError, match=r"holds 2 DICOM series whose UID begins with 1\.2: T1 .*; T2 .*:UID\.$"):
        read_image(f"{tmp_path}:1.2")
    with pytest.raises(InputError, match=r"holds 0 DICOM series whose UID begins with 9: T1 .*; T2 .*; PD .*:UID\.$"):
        read_image(f"{tmp_path}:9")
    with pytest.raises(InputError, match=r"3 DICOM series: .* Choose one by its UID, as "):
        read_image(tmp_path)
