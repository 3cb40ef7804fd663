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
