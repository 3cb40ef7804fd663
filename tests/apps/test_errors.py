"""What an exception becomes on the screen and in a run folder."""

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from learnreg.apps.errors import LOG, input_error, logging_errors, one_line, reporting_errors
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
