"""What an exception becomes on the screen and in a run folder."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from learnreg.apps.errors import LOG, input_error, is_out_of_memory, logging_errors, one_line, reporting_errors
from learnreg.errors import InputError, MissingFileError

pytestmark = pytest.mark.slow


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise MissingFileError("No such image: a.nii.gz.")


def raising(error, cause=None):
    """An exception as an ``except`` clause gets it."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_only_bad_input_becomes_a_line(capsys):
    with pytest.raises(SystemExit, match="2"), reporting_errors():
        raise InputError("one\n   line")
    assert capsys.readouterr().err == "error: one line\n"
    with pytest.raises(ValueError, match="^a bug$"), reporting_errors():
        raise ValueError("a bug")
    with pytest.raises(InputError), reporting_errors(debug=True):
        raise InputError("shown")
    with pytest.raises(SystemExit, match="130"), reporting_errors():
        raise KeyboardInterrupt


def test_a_reader_that_has_gone_ends_a_command_in_silence():
    """As in ``learnreg methods | head -1``: what Python still holds in its buffer is lost without a word as well."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "learnreg.apps.main", "methods"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    with pytest.raises(BrokenPipeError, match="of a worker"), reporting_errors():
        raise BrokenPipeError("of a worker")


def test_what_hydra_wraps_counts_and_what_others_raise_does_not():
    with pytest.raises(InstantiationException) as wrapped:
        instantiate({"_target_": "learnreg.transforms.Composite", "transforms": []})
    assert "at least one" in one_line(input_error(wrapped.value))
    assert input_error(raising(RuntimeError("a bug"), cause=InputError("handled badly"))) is None
    assert input_error(raising(InstantiationException("a bug"), cause=TypeError("int"))) is None


def test_an_error_of_a_worker_is_its_message():
    loader = torch.utils.data.DataLoader(Unreadable(), num_workers=1)
    with pytest.raises(InputError, match="Original Traceback") as caught:
        next(iter(loader))
    assert one_line(input_error(caught.value)) == "No such image: a.nii.gz."


def test_every_process_adds_to_the_log(tmp_path):
    for message in ("the first", "connection lost"):
        with pytest.raises(RuntimeError), logging_errors(tmp_path / "run"):
            raise RuntimeError(message)
    text = (tmp_path / "run" / LOG).read_text()
    assert text.count("Traceback") == 2
    assert text.index("the first") < text.index("connection lost")
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="itself"), logging_errors(tmp_path / "file"):
        raise RuntimeError("itself")


def test_memory_that_ran_out_is_one_line(capsys):
    """NumPy and PyTorch say it differently; 100 TB are refused by the system itself."""
    for allocate in (lambda: np.ones(10**14), lambda: torch.ones(10**14), lambda: bytearray(10**14)):
        with pytest.raises(SystemExit, match="2"), reporting_errors():
            allocate()
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(r"error: Memory ran out \(\w+\)\. Crop or resample the images", line), line
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import learnreg.apps.register, learnreg.io, torch, SimpleITK, pytorch_lightning
from learnreg.apps.main import main
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)
main(sys.argv[1:])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of Linux")
def test_a_registration_without_enough_memory_is_one_line_and_leaves_nothing(tmp_path):
    values = np.random.default_rng(0).random((128, 128, 128)).astype(np.float32)  # 8 MB, and some 20 in a registration
    for name in ("a.nii.gz", "b.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, "register", "a.nii.gz", "b.nii.gz", "-o", "out", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: Memory ran out .*\n", done.stderr), done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]
