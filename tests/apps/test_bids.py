"""A BIDS App: derivatives by their names, nothing twice, nothing half-done."""

import csv
import json

import pytest
import torch

from learnreg.apps.main import main
from learnreg.io import read_image, write_image
from learnreg.transforms.files import read_transform
from tests.apps.test_batch import GRID
from tests.conftest import blob_image


@pytest.fixture
def study(tmp_path):
    for k, place in enumerate(("sub-01/anat/sub-01_T1w", "sub-02/ses-a/anat/sub-02_ses-a_T1w")):
        file = tmp_path / "study" / f"{place}.nii.gz"
        file.parent.mkdir(parents=True)
        write_image(blob_image(GRID, (1.0 + k, 0.0, 0.0)).data[0], GRID, file)
    write_image(blob_image(GRID).data[0], GRID, tmp_path / "MNI_2mm.nii.gz")
    return tmp_path


def bids(study, *arguments):
    try:
        main(["bids", str(study / "study"), str(study / "out"), *map(str, arguments), "--quiet"])
    except SystemExit as ended:
        return ended.code
    return 0


def test_derivatives_have_the_names_of_bids(study, capsys):
    given = ("participant", "--to", study / "MNI_2mm.nii.gz", "--method", "rigid")
    assert bids(study, *given, "--participant-label", "02") == 0
    out = study / "out"
    begin = out / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a"
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == [
        "dataset_description.json",
        *(f"sub-02/ses-a/anat/sub-02_ses-a_from-T1w_to-MNI2mm_mode-image_xfm.{kind}" for kind in ("h5", "json")),
        "sub-02/ses-a/anat/sub-02_ses-a_space-MNI2mm_T1w.nii.gz",
    ]
    moved = read_transform(f"{begin}_from-T1w_to-MNI2mm_mode-image_xfm.h5", ndim=3)(torch.zeros(1, 1, 3))
    assert moved.flatten().tolist() == pytest.approx([2, 0, 0], abs=0.2)
    assert read_image(f"{begin}_space-MNI2mm_T1w.nii.gz").grid.matches(GRID)
    assert json.loads((out / "dataset_description.json").read_text())["GeneratedBy"][0]["Name"] == "learnreg"
    before = {file: file.stat().st_mtime_ns for file in out.rglob("sub-02*")}
    assert bids(study, *given) == 0  # the other one only
    assert (out / "sub-01" / "anat" / "sub-01_from-T1w_to-MNI2mm_mode-image_xfm.h5").exists()
    assert all(file.stat().st_mtime_ns == when for file, when in before.items() if file.is_file())
    assert bids(study, "group") == 0
    with (out / "group_registration.tsv").open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert [row["pair"] for row in rows] == ["sub-01_T1w", "sub-02_ses-a_T1w"]
    assert all(float(row["ncc_after"]) > float(row["ncc_before"]) for row in rows)


def test_what_fails_is_told_and_tried_again(study, capsys):
    file = study / "study" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    given = ("participant", "--to", study / "MNI_2mm.nii.gz", "--method", "rigid")
    assert bids(study, *given) == 1
    assert "1 of 2 pairs failed" in capsys.readouterr().err
    assert len(list((study / "out").rglob("*_xfm.h5"))) == 1
    file.write_bytes(whole)
    assert bids(study, *given) == 0
    assert len(list((study / "out").rglob("*_xfm.h5"))) == 2
    assert not list((study / "out").glob(".part-*"))


def test_bad_input_is_one_line(study, capsys):
    for arguments, message in (
        (("participant",), "No such reference"),
        (("group",), "run the level `participant` first"),
        (("participant", "--to", study / "MNI_2mm.nii.gz", "--participant-label", "7"), "no images of sub-7"),
    ):
        assert bids(study, *arguments) == 2
        assert message in capsys.readouterr().err


def test_a_kill_while_a_result_is_moved(study):
    rest = study / "out" / ".part-learnreg" / "out" / "sub-01_T1w"
    rest.mkdir(parents=True)
    (rest / "transform.h5").write_text("its metrics were moved before")
    assert bids(study, "participant", "--to", study / "MNI_2mm.nii.gz", "--method", "rigid") == 0
    assert len(list((study / "out").rglob("*_xfm.h5"))) == 2
    assert not list((study / "out").glob(".part-*"))
