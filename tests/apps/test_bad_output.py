"""The table of outputs that cannot be written: a command and what stands in its way in each row.

A row ends by one line on the standard error stream with the remedy and exit status 2; nothing is left behind, and what
was there is as before. The file system is limited by the operating system, as a full disk is.
"""

import os
import resource
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.apps import faults
from tests.apps.test_bad_input import ended, listing, refused, table

IMAGES_OUT = ("apply", "apply labels", "jacobian")
TRANSFORMS_OUT = ("compose", "invert", "convert")
TABLES_OUT = ("apply points",)
MODELS_OUT = ("export",)
FILES_OUT = (*IMAGES_OUT, *TRANSFORMS_OUT, *TABLES_OUT, *MODELS_OUT)
FOLDERS_OUT = ("register", "evaluate", "template", "series", "batch", "bids")
NAMES = dict.fromkeys(IMAGES_OUT, "out.nii.gz") | dict.fromkeys(TRANSFORMS_OUT, "out.h5")
NAMES |= {"apply points": "out.csv", "export": "out.safetensors"} | dict.fromkeys(FOLDERS_OUT, "out")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    faults.good_files(folder)
    volumes = np.stack([faults.blob(shift=0.1 * k, seed=k) for k in range(2)])
    sitk.WriteImage(sitk.JoinSeries([faults.itk(volume) for volume in volumes]), str(folder / "series.nii.gz"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    yield folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def writing(command, out, made):
    """The arguments of a command that writes ``out``."""
    fixed, moving, shift, tiny = (made / name for name in ("fixed.nii.gz", "moving.nii.gz", "shift.tfm", "tiny.yaml"))
    labels = made / "fixed_labels.nii.gz", made / "moving_labels.nii.gz"
    if command == "template":
        table("data.csv", ("image",), (fixed,), (moving,))
    else:
        table("data.csv", ("fixed", "moving", "fixed_labels", "moving_labels"), (fixed, moving, *labels))
    if command == "bids":
        Path("bids/sub-01/anat").mkdir(parents=True)
        shutil.copy(moving, "bids/sub-01/anat/sub-01_T1w.nii.gz")
    how = ("--method", tiny, "--quiet")
    return {
        "register": ["register", fixed, moving, "-o", out, *how],
        "apply": ["apply", shift, moving, "-r", fixed, "-o", out],
        "apply labels": ["apply", shift, labels[1], "-r", fixed, "-o", out, "--labels"],
        "apply points": ["apply", shift, "--points", made / "fixed.csv", "-r", fixed, "-o", out],
        "jacobian": ["jacobian", shift, "-r", fixed, "-o", out],
        "compose": ["compose", shift, made / "field.nii.gz", "-r", fixed, "-o", out],
        "invert": ["invert", made / "field.nii.gz", "-r", fixed, "-o", out],
        "convert": ["convert", made / "field.nii.gz", "-r", fixed, "-o", out],
        "export": ["export", made / "good.ckpt", "-o", out],
        "batch": ["batch", "data.csv", "-o", out, *how],
        "evaluate": ["evaluate", "data.csv", "-o", out, *how],
        "template": ["template", "data.csv", "-o", out, "--rounds", "1", *how],
        "series": ["series", made / "series.nii.gz", "-o", out, "--rounds", "1", *how],
        "bids": ["bids", "bids", out, "participant", "--to", fixed, *how],
    }[command]


def on_a_full_disk(arguments, size):
    """The status and errors of a command in a process whose files cannot grow beyond a size in bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            status = ended(arguments)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


@pytest.mark.parametrize("command", [*FILES_OUT, *FOLDERS_OUT])
def test_every_command_writes_into_a_new_folder(command, made):
    """That the rows below fail for what stands in the way alone."""
    out = Path("new/folder") / NAMES[command]
    assert ended(writing(command, out, made)) == 0
    assert out.exists()
    assert not list(Path().rglob(".part-*"))


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        *((command, suffix) for command in IMAGES_OUT for suffix in (".xyz", ".png", ".jpg", ".bmp", "", ".h5")),
        *((command, suffix) for command in TRANSFORMS_OUT for suffix in (".xyz", ".png", ".jpg", ".csv", "")),
        *((command, suffix) for command in TABLES_OUT for suffix in (".xyz", ".png", ".nii.gz", "")),
        *((command, suffix) for command in MODELS_OUT for suffix in (".xyz", ".png", ".nii.gz", "")),
    ],
)
def test_suffixes_of_no_format(command, suffix, made, capfd):
    refused(capfd, writing(command, f"out{suffix}", made), f"out{suffix}")


@pytest.mark.parametrize("command", FILES_OUT)
def test_an_existing_file_is_kept(command, made, capfd):
    out = Path(NAMES[command])
    out.write_text("of yesterday")
    told = refused(capfd, writing(command, out, made), out)
    assert "--overwrite" in told
    assert out.read_text() == "of yesterday"
    assert ended([*writing(command, out, made), "--overwrite"]) == 0
    assert out.read_bytes() != b"of yesterday"


@pytest.mark.parametrize("command", ["register", "template", "series"])
def test_existing_results_are_kept(command, made, capfd):
    """``batch`` and ``bids`` go on where they were stopped."""
    assert ended(writing(command, "out", made)) == 0
    before = {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    told = refused(capfd, writing(command, "out", made), "out")
    assert "--overwrite" in told
    assert {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("command", [*FILES_OUT, *FOLDERS_OUT])
def test_a_file_where_a_folder_is_needed(command, made, capfd):
    Path("file").write_text("kept")
    refused(capfd, writing(command, Path("file") / NAMES[command], made), "file")
    assert Path("file").read_text() == "kept"


@pytest.mark.parametrize("command", FILES_OUT)
def test_a_folder_where_a_file_is_needed(command, made, capfd):
    for more in ((), ("--overwrite",)):
        Path(NAMES[command]).mkdir(exist_ok=True)
        refused(capfd, [*writing(command, NAMES[command], made), *more], NAMES[command])
    assert listing(NAMES[command]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into any folder")
@pytest.mark.parametrize("command", [*FILES_OUT, *FOLDERS_OUT])
def test_a_protected_folder(command, made, capfd):
    Path("protected").mkdir(mode=0o500)
    refused(capfd, writing(command, Path("protected") / NAMES[command], made), "protected")


@pytest.mark.parametrize("command", [c for c in (*FILES_OUT, *FOLDERS_OUT) if c not in ("batch", "bids")])
def test_a_full_disk(command, made):
    arguments = writing(command, "out.nii" if command in IMAGES_OUT else NAMES[command], made)
    before = listing(".")
    status, told = on_a_full_disk(arguments, {"apply points": 20, "evaluate": 50}.get(command, 600))
    assert status == 2, told
    (line,) = (line for line in told.splitlines() if not line.startswith("| "))
    assert line.startswith("error: out"), told
    assert "cannot be written: File too large" in line or "check the space on the disk" in line, told
    assert listing(".") == before


@pytest.mark.parametrize("command", ["batch", "bids"])
def test_a_full_disk_during_a_batch(command, made):
    """No pair counts as done, and the next run does all of them."""
    arguments = writing(command, "out", made)
    status, told = on_a_full_disk(arguments, 1000)
    assert status in (1, 2), told
    assert "Traceback" not in told
    assert not list(Path("out").rglob("transform.h5"))
    assert ended([*arguments, *(["--retry"] if command == "batch" else [])]) == 0


def test_hdf5_does_not_end_the_process(made):
    """When Python exits, after the error: HDF5 would write what it holds once more, and crash."""
    limited = "import resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (300, 300)); "
    command = [sys.executable, "-c", limited + "from learnreg.apps.main import main; main(sys.argv[1:])"]
    done = subprocess.run([*command, *writing("invert", "out.h5", made)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: out.h5 cannot be written: File too large. Choose another output.\n"
