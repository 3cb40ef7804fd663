import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from learnreg.apps.main import main
from learnreg.data import read_subjects, survey
from tests.data.test_data import write


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write(tmp_path / "images" / f"s{i}.nii.gz", i)
        write(tmp_path / "labels" / f"s{i}.nii.gz", i, labels=True)
    return tmp_path


def check(folder, capsys, *arguments):
    """The exit status, and what is printed."""
    status = 0
    try:
        main(["check", str(folder), *arguments])
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr()


def store(values, file, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(values)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(file))


def test_data_without_a_finding(folder, capsys):
    status, told = check(folder, capsys)
    assert status == 0
    lines = told.out.splitlines()
    assert "| s0 | 12 14 10 | 1 1 1 | RAS | 1 |" in told.out
    assert "| 0 1 2 |" in told.out
    assert lines[-1] == "4 images, 1 shape, 1 spacing, 1 orientation, 4 with labels; 0 errors, 0 notes"
    assert check(folder, capsys, "--quiet")[1].out.splitlines() == lines[-1:]
    assert [entry.findings for entry in survey(read_subjects(folder))] == [()] * 4


def damage(kind, folder):
    image, labels = folder / "images/s2.nii.gz", folder / "labels/s2.nii.gz"
    values = np.random.default_rng(8).random((12, 14, 10)).astype(np.float32)
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:1000])
    elif kind == "text":
        labels.write_text("no image")
    elif kind in ("infinite", "nan"):
        values[3, 4, 5] = np.inf if kind == "infinite" else np.nan
        store(values, image)
    elif kind == "constant":
        store(0 * values + 3, image)
    elif kind == "halves":
        store(values, labels)
    elif kind == "negative":
        store(np.full((12, 14, 10), -3, np.int16), labels)
    elif kind == "size":
        store(np.ones((12, 14, 9), np.uint8), labels)
    elif kind == "place":
        store(np.ones((12, 14, 10), np.uint8), labels, (1, 0, 0, 0, 1, 0, 0, 0, 1))
    elif kind == "copy":
        image.write_bytes((folder / "images/s0.nii.gz").read_bytes())


def test_nan_is_told_and_is_no_error(folder, capsys):
    damage("nan", folder)
    status, told = check(folder, capsys)
    assert status == 0
    assert "is NaN, and left out as by a mask" in told.out


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "images/s2.nii.gz: is damaged"),
        ("text", "labels/s2.nii.gz: "),
        ("infinite", "images/s2.nii.gz: has 1 infinite values"),
        ("constant", "images/s2.nii.gz: channel 0 is constant: every value is 3"),
        ("halves", "labels/s2.nii.gz: has 1678 values that are not integers"),
        ("negative", "labels/s2.nii.gz: labels are negative: -3"),
        ("size", "have shape (12, 14, 9) but the image"),
        ("place", "lie in different places"),
        ("copy", "s2.nii.gz: it has the same content as"),
    ],
)
def test_what_is_wrong_is_named(kind, message, folder, capsys):
    damage(kind, folder)
    status, told = check(folder, capsys)
    assert status == 1
    errors = [line for line in told.out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "; 1 errors" in told.out.splitlines()[-1]


def test_what_differs_from_most_is_a_note(folder, capsys):
    values = np.random.default_rng(8).random((12, 14, 10)).astype(np.float32)
    store(values, folder / "images/s3.nii.gz", (1, 0, 0, 0, 1, 0, 0, 0, 1))
    store(np.zeros((12, 14, 10), np.uint8), folder / "labels/s3.nii.gz", (1, 0, 0, 0, 1, 0, 0, 0, 1))
    status, told = check(folder, capsys)
    assert status == 0
    assert "note: " + str(folder / "labels/s3.nii.gz") + ": the segmentation is empty" in told.out
    assert "orientation is LPS, and RAS in 3 of 4 images" in told.out
    assert "lacks the labels 1, 2, unlike 3 of 4 images" in told.out


def test_a_data_set_that_is_none(tmp_path, capsys):
    status, told = check(tmp_path / "nowhere", capsys)
    assert status == 2
    assert told.err.startswith("error: No such data set")


def test_pairs_and_groups(folder, capsys):
    (folder / "pairs.csv").write_text("fixed,moving,group\nimages/s0.nii.gz,images/s1.nii.gz,a\n")
    status, told = check(folder / "pairs.csv", capsys)
    assert status == 0
    assert "2 images, 1 shape, 1 spacing, 1 orientation, 0 with labels, 1 groups" in told.out


def check_images(capsys, *files):
    status = 0
    try:
        main(["check", *map(str, files)])
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().out


def test_images_are_described(folder, capsys):
    status, told = check_images(capsys, folder / "images/s0.nii.gz", folder / "labels/s0.nii.gz")
    assert status == 0
    image = sitk.ReadImage(str(folder / "images/s0.nii.gz"))
    values = sitk.GetArrayFromImage(image)
    size = " ".join(map(str, image.GetSize()[::-1]))
    for expected in (f"shape z y x   {size}", "spacing x y z 1 1 1 mm", "axes          RAS", "NaN           none"):
        assert expected in told
    assert f"range         {values.min():.5g} to {values.max():.5g}, mean {values.mean():.5g}" in told
    assert "labels        0 1 2" in told
    assert "s0.nii.gz: it looks like a segmentation" in told
    assert told.splitlines()[-1] == "2 images; 0 cannot be used, 1 notes"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "error: {}: is damaged"),
        ("infinite", "error: {}: has 1 infinite values"),
        ("constant", "error: {}: it is constant"),
        ("missing", "error: {}: No such image"),
    ],
)
def test_one_bad_image_is_named_and_the_others_are_described(kind, message, folder, capsys):
    file = folder / "images/s2.nii.gz"
    damage(kind, folder)
    if kind == "missing":
        file.unlink()
    status, told = check_images(capsys, folder / "images/s0.nii.gz", file, folder / "images/s1.nii.gz")
    assert status == 1
    assert message.format(file) in told
    assert told.count("axes          RAS") >= 2
    assert told.splitlines()[-1].startswith("3 images; 1 cannot be used")


def test_what_is_unusual_in_an_image_is_a_note(tmp_path, capsys):
    values = np.random.default_rng(8).random((4, 14, 10)).astype(np.float32)
    values[0, 0, :5] = np.nan
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.4, 0.4, 25.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    status, told = check_images(capsys, tmp_path / "a.nii.gz")
    assert status == 0
    assert "NaN           5 voxels, 0.893 %" in told
    for expected in ("62.5 times as long as wide", "are its units mm?", "only 4 samples along an axis"):
        assert expected in told
    assert told.splitlines()[-1] == "1 images; 0 cannot be used, 4 notes"


def test_color_and_series_are_described_and_refused(tmp_path, capsys):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 3), np.uint8), isVector=True), str(tmp_path / "c.png"))
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((2, 8, 8, 8), np.float32), isVector=False), str(tmp_path / "four.nii.gz")
    )
    status, told = check_images(capsys, tmp_path / "c.png", tmp_path / "four.nii.gz")
    assert status == 1
    assert "3 values a voxel" in told
    assert "one gray channel" in told
    assert "shape z y x   2 8 8 8" in told
    assert "is 4-D" in told
    assert told.splitlines()[-1].startswith("2 images; 2 cannot be used")


def test_a_warning_about_a_header_is_a_note_of_its_image(folder, capsys):
    stored = nibabel.load(folder / "images/s0.nii.gz")
    shifted = stored.affine.copy()
    shifted[0, 3] += 40
    stored.set_sform(shifted, 1)
    nibabel.save(stored, folder / "images/s0.nii.gz")
    status, told = check_images(capsys, folder / "images/s0.nii.gz")
    assert status == 0
    notes = [line for line in told.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "sform and qform" in notes[0]
