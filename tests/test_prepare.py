"""Public data sets are prepared from what people download, and train; small images stand in for the real ones."""

import importlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from learnreg.data import read_pairs, read_subjects
from tests.test_configs import run

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SMALL = "data.space.shape=[32,32,32]"


@pytest.fixture
def prepare(monkeypatch):
    """``scripts/prepare.py`` as a function of its arguments."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("prepare")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def image(file, seed=0, *, labels=False):
    values = np.zeros((8, 10, 9), np.uint8 if labels else np.float32)
    values[2:5, 3:7, 2:6], values[5:7, 3:7, 2:6] = 1, 2
    if not labels:
        values += np.random.default_rng(seed).random(values.shape).astype(np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(file))


def decathlon(folder):
    for k in range(6):
        image(folder / "Task04_Hippocampus" / "imagesTr" / f"hippocampus_{k:03}.nii.gz", k)
        image(folder / "Task04_Hippocampus" / "labelsTr" / f"hippocampus_{k:03}.nii.gz", labels=True)
    (folder / "Task04_Hippocampus" / "imagesTr" / "._hippocampus_000.nii.gz").write_bytes(b"macOS")


def oasis(folder):
    for k in range(1, 7):
        image(folder / f"OASIS_OAS1_{k:04}_MR1" / "aligned_norm.nii.gz", k)
        image(folder / f"OASIS_OAS1_{k:04}_MR1" / "aligned_seg35.nii.gz", labels=True)


def ixi(folder):
    for k in range(6):
        for seed, contrast in enumerate(("T1", "T2")):
            image(folder / f"IXI{k:03}-Guys-{700 + k:04}-{contrast}.nii.gz", 10 * k + seed)


def challenge(folder, name, *, pairs=True, labels=False):
    """Learn2Reg's layout: two images a case in pairs, of which two validate; or single images."""
    names = [f"{name}_{k:04}_{m:04}" for k in range(4) for m in range(2)]
    for k, one in enumerate(names):
        image(folder / name / "imagesTr" / f"{one}.nii.gz", k)
        if labels:
            image(folder / name / "labelsTr" / f"{one}.nii.gz", labels=True)
        if name == "NLST":
            image(folder / name / "masksTr" / f"{one}.nii.gz", labels=True)
            points = folder / name / "keypointsTr" / f"{one}.csv"
            points.parent.mkdir(exist_ok=True)
            points.write_text(f"1.0,2.0,3.0\n4,5,{k % 2}.5\n" * (1 + k // 2))  # not as many in every pair
    listed = [f"./imagesTr/{one}.nii.gz" for one in names]
    couples = [{"fixed": f, "moving": m} for f, m in zip(listed[::2], listed[1::2], strict=True)]
    content = {"name": name, "training": [{"image": one} for one in listed], "registration_val": couples[2:]}
    if pairs:
        content["training_paired_images"] = couples
    (folder / name / f"{name}_dataset.json").write_text(json.dumps(content))


SETS = {
    "hippocampus": (decathlon, "tar"),
    "oasis": (oasis, "tar"),
    "ixi": (ixi, "tar"),
    "nlst": (lambda folder: challenge(folder, "NLST"), "zip"),
    "abdomen_mrct": (lambda folder: challenge(folder, "AbdomenMRCT", labels=True), "zip"),
    "l2r_oasis": (lambda folder: challenge(folder, "OASIS", pairs=False, labels=True), "zip"),
    "lumir": (lambda folder: challenge(folder, "LUMIR", pairs=False), "zip"),
}


def archive(folder, name):
    make, kind = SETS[name]
    make(folder / "made")
    files = sorted(file for file in (folder / "made").rglob("*") if file.is_file())
    target = folder / f"{name}.{kind}"
    if kind == "tar":
        with tarfile.open(target, "w") as opened:
            for file in files:
                opened.add(file, file.relative_to(folder / "made"))
    else:
        with zipfile.ZipFile(target, "w") as opened:
            for file in files:
                opened.write(file, file.relative_to(folder / "made"))
    return target


@pytest.mark.parametrize("name", SETS)
@pytest.mark.slow
def test_a_set_is_prepared_and_trains(name, prepare, tmp_path, capsys):
    data = tmp_path / "data" / name
    prepare(name, archive(tmp_path, name), "-o", data, "--partial")
    assert f"Wrote {data}/data.csv" in capsys.readouterr().out
    assert not list(data.parent.glob(".part-*"))
    pairs = read_pairs(data / "data.csv")
    if name in ("nlst", "abdomen_mrct"):
        assert [fixed.split for fixed, _ in pairs] == ["train"] * 2 + ["validation"] * 2
        fixed, moving = (subject.read() for subject in pairs[0])
        if name == "nlst":
            assert fixed.grid.to_index(fixed.landmarks)[0].round().tolist() == [[1, 2, 3], [4, 5, 0]]
            assert [f.read().landmarks.shape[1] for f, _ in pairs] == [2, 4, 6, 8]
            assert moving.mask is not None
    else:
        subjects = read_subjects(data / "data.csv")
        assert {subject.split for subject in subjects} == {"train", "validation"}
        groups = [{s.group for s in subjects if s.split == split and s.group} for split in ("train", "validation")]
        assert not groups[0] & groups[1]
    if name in ("hippocampus", "l2r_oasis"):
        return  # `experiment=hippocampus` takes positions; `experiment=oasis data.path=...` is tried as `oasis`
    done = run(
        "train.py",
        f"experiment={name}",
        "debug=step",
        "trainer.accelerator=cpu",
        SMALL,
        f"hydra.run.dir={tmp_path}/run",
        LEARNREG_DATA=str(tmp_path / "data"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_folder_that_is_unpacked_gets_its_table(prepare, tmp_path):
    ixi(tmp_path / "ixi")
    prepare("ixi", tmp_path / "ixi", "-o", tmp_path / "ixi")
    assert len(read_subjects(tmp_path / "ixi" / "data.csv")) == 12
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ixi"]


def fails(prepare, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        prepare(*arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_what_is_wrong_is_told_and_nothing_is_left(prepare, tmp_path, capsys):
    whole, out = archive(tmp_path, "oasis"), tmp_path / "out"
    given = ("oasis", whole, "-o", out)
    assert "6 subjects were found, the set has 414" in fails(prepare, capsys, *given)
    assert "holds" not in fails(prepare, capsys, "ixi", *given[1:]) and not out.exists()
    assert "No such archive" in fails(prepare, capsys, "oasis", tmp_path / "none.tar", "-o", out)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "cut.tar is damaged" in fails(prepare, capsys, "oasis", cut, "-o", out, "--partial")
    (tmp_path / "text.zip").write_text("nothing")
    assert "is no .tar" in fails(prepare, capsys, "oasis", tmp_path / "text.zip", "-o", out)
    (tmp_path / "made" / "OASIS_OAS1_0003_MR1" / "aligned_seg35.nii.gz").unlink()
    missing = fails(prepare, capsys, "oasis", tmp_path / "made", "-o", tmp_path / "made", "--partial")
    assert "OASIS_OAS1_0003_MR1/aligned_seg35.nii.gz is missing" in missing
    broken = tmp_path / "made" / "OASIS_OAS1_0003_MR1" / "aligned_seg35.nii.gz"
    broken.write_bytes(b"nothing")
    assert str(broken.name) in fails(prepare, capsys, "oasis", tmp_path / "made", "-o", tmp_path / "made", "--partial")
    assert not out.exists()
    assert not list(tmp_path.rglob(".part-*"))
    assert not list(tmp_path.rglob("*.csv"))
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "is not empty" in fails(prepare, capsys, *given, "--partial")
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def cut(folder):
    file = folder / "AbdomenMRCT" / "imagesTr" / "AbdomenMRCT_0001_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-200])


def twice(folder):
    images = folder / "AbdomenMRCT" / "imagesTr"
    shutil.copy(images / "AbdomenMRCT_0000_0000.nii.gz", images / "AbdomenMRCT_0003_0000.nii.gz")


def shifted(folder):
    file = folder / "AbdomenMRCT" / "labelsTr" / "AbdomenMRCT_0001_0001.nii.gz"
    stored = sitk.ReadImage(str(file))
    stored.SetOrigin((50.0, 0.0, 0.0))
    sitk.WriteImage(stored, str(file))


def lacking(folder):
    (folder / "AbdomenMRCT" / "labelsTr" / "AbdomenMRCT_0001_0001.nii.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "0001_0000.nii.gz is damaged"),
        (twice, "has the same content as"),
        (shifted, "lie in different places"),
        (lacking, "has no moving_labels, which others have"),
    ],
)
def test_what_a_header_does_not_tell(damage, message, prepare, tmp_path, capsys):
    challenge(tmp_path / "made", "AbdomenMRCT", labels=True)
    damage(tmp_path / "made")
    assert message in fails(prepare, capsys, "abdomen_mrct", tmp_path / "made", "-o", tmp_path / "made")


def test_landmarks_that_do_not_correspond(prepare, tmp_path, capsys):
    challenge(tmp_path / "made", "NLST")
    points = tmp_path / "made" / "NLST" / "keypointsTr"
    (points / "NLST_0002_0001.csv").write_text("1,2,3\n")
    given = ("nlst", tmp_path / "made", "-o", tmp_path / "made")
    assert "NLST_0002_0001.ijk.csv has 1 landmarks" in fails(prepare, capsys, *given)
    (points / "NLST_0002_0001.csv").write_text("x,y,z\n1,2,3\n")
    assert "three numbers a line, got 'x,y,z'" in fails(prepare, capsys, *given)
    assert not list(tmp_path.rglob("*.ijk.csv"))


def test_an_archive_cannot_write_elsewhere(prepare, tmp_path, capsys):
    with tarfile.open(tmp_path / "evil.tar", "w") as opened:
        info = tarfile.TarInfo("../outside.txt")
        info.size = 4
        opened.addfile(info, io.BytesIO(b"evil"))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as opened:
        opened.writestr("../outside.txt", "evil")
    for name in ("evil.tar", "evil.zip"):
        assert "outside of its folder" in fails(prepare, capsys, "ixi", tmp_path / name, "-o", tmp_path / "a" / "out")
    assert not list(tmp_path.rglob("outside.txt"))
