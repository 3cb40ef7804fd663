"""Models of a folder and of a server that ``LEARNREG_MODELS`` names."""

import hashlib
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import learnreg
from learnreg.apps.doctor import models
from learnreg.apps.main import main
from learnreg.apps.methods import run as list_methods
from learnreg.configs.models import cache, model_file, model_files, package_files
from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.networks.checkpoint import find, load_checkpoint, of_dimension
from learnreg.transforms import Affine
from tests.conftest import blob_image

ASKED = []


class Server(SimpleHTTPRequestHandler):
    """Serves a folder and notes what it was asked for."""

    def do_GET(self):
        ASKED.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """A folder with one model, and a cache of its own."""
    folder = tmp_path / "offered"
    folder.mkdir()
    shutil.copy(package_files()["universal"], folder / "large.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def url(offered, monkeypatch):
    ASKED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=offered)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("LEARNREG_MODELS", address)
        yield address
        server.shutdown()


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def with_sum(folder):
    (folder / "large.sha256").write_text(f"{digest(folder / 'large.safetensors')}  large.safetensors\n")


def test_a_folder(offered, monkeypatch):
    monkeypatch.setenv("LEARNREG_MODELS", str(offered))
    assert find("large") == offered / "large.safetensors"
    assert of_dimension("large", 2) == "large"
    shutil.copy(package_files()["universal-2d"], offered / "large-2d.safetensors")
    assert of_dimension("large", 2) == "large-2d"
    assert load_checkpoint("large").network.ndim == 3
    with pytest.raises(MissingFileError, match=r"or one of hippocampus, .*, large, large-2d\.$"):
        load_checkpoint("larger")


def test_a_name_of_the_package_is_its_model(offered, monkeypatch):
    shutil.copy(package_files()["hippocampus"], offered / "universal.safetensors")
    monkeypatch.setenv("LEARNREG_MODELS", str(offered))
    assert model_file("universal") == package_files()["universal"]
    hidden = [line for line in models() if not line.fine]
    assert [line.name for line in hidden] == ["universal"]
    assert "is not used" in hidden[0].found


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNREG_MODELS", str(tmp_path / "none"))
    assert find("universal") == package_files()["universal"]
    with pytest.raises(MissingFileError, match="none is not a folder"):
        find("large")
    assert [line.found for line in models() if not line.fine] == [f"{tmp_path / 'none'} is not a folder"]


@pytest.mark.parametrize("line", ["{}", "{}  large.safetensors", "{} *./large.safetensors"])
def test_a_server(line, offered, url, capsys):
    (offered / "large.sha256").write_text(line.format(digest(offered / "large.safetensors")) + "\n")
    assert "large" not in model_files()
    file = find("large")
    assert file.parent == cache(url)
    assert file.read_bytes() == (offered / "large.safetensors").read_bytes()
    assert ASKED == ["/large.sha256", "/large.safetensors"]
    assert capsys.readouterr().err == ""


def test_a_file_of_another_sum_is_not_kept(offered, url):
    with_sum(offered)
    with (offered / "large.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="large.safetensors does not have the sha256"):
        find("large")
    assert not list(cache(url).iterdir())


def test_nothing_is_downloaded_unasked_or_twice(offered, url, capsys):
    with_sum(offered)
    load_checkpoint("universal")
    assert of_dimension("large", 2) == "large"
    list_methods()
    assert f"--checkpoint NAME: from LEARNREG_MODELS={url}" in capsys.readouterr().out
    assert next(line for line in models() if line.name == "LEARNREG_MODELS").found.startswith(f"{url}, 0 of its models")
    with pytest.raises(MissingFileError):
        find("best.ckpt")
    with pytest.raises(MissingFileError):
        find("../large")
    assert ASKED == []
    find("large")
    asked = list(ASKED)
    load_checkpoint("large")
    list_methods()
    assert "--checkpoint large: " in capsys.readouterr().out
    assert {"LEARNREG_MODELS", "large"} <= {line.name for line in models() if line.fine}
    assert asked == ASKED


def test_sums_of_all_models(offered, url):
    (offered / "SHA256SUMS").write_text(
        f"{'0' * 64}  other.safetensors\n{digest(offered / 'large.safetensors')}  large.safetensors\n"
    )
    assert find("large").is_file()
    assert ASKED[:2] == ["/large.sha256", "/SHA256SUMS"]


def test_what_a_server_lacks(offered, url):
    with pytest.raises(MissingFileError, match=f"{url} has no large.safetensors with a sha256 in large.sha256 or SHA2"):
        find("large")
    (offered / "gone.sha256").write_text("1" * 64)
    with pytest.raises(InputError, match="gone.safetensors cannot be downloaded"):
        find("gone")


def test_a_file_url(offered, monkeypatch):
    monkeypatch.setenv("LEARNREG_MODELS", f"{offered.as_uri()}/")
    with pytest.raises(MissingFileError, match="has no large.safetensors with a sha256"):
        find("large")
    with_sum(offered)
    assert find("large").is_file()


def test_a_server_that_is_down(url, monkeypatch):
    monkeypatch.setenv("LEARNREG_MODELS", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="large.sha256 cannot be read: .*refused.*; check LEARNREG_MODELS"):
        find("large")
    assert load_checkpoint("universal").network.ndim == 3


def test_a_start_of_a_registration(offered, url, tmp_path, monkeypatch, capsys):
    """A model by its name, unless a file has the name."""
    with_sum(offered)
    monkeypatch.chdir(tmp_path)
    grid = Grid.regular((32, 32, 32))
    fixed, moving = blob_image(grid), blob_image(grid, (4.0, -3.0, 2.0))
    result = learnreg.register(fixed, moving, "rigid", initial="large")
    assert not isinstance(result.initial, Affine)
    assert torch.equal(
        result.initial.displacement(grid), learnreg.register(fixed, moving, "rigid", initial="universal").initial.displacement(grid)
    )  # fmt: skip
    Path("large").write_text("not a transform")
    with pytest.raises(InputError, match="large"):
        learnreg.register(fixed, moving, "rigid", initial="large")
    with pytest.raises(MissingFileError, match=r"No such transform: larger\. .*identity or one of hippocampus"):
        learnreg.register(fixed, moving, "rigid", initial="larger")


def test_a_mismatch_on_the_command_line_is_one_line(offered, url, tmp_path, capsys):
    (offered / "large.sha256").write_text("0" * 64)
    grid = Grid.regular((16, 16, 16))
    for name in ("fixed", "moving"):
        learnreg.write_image(blob_image(grid).data[0, 0], grid, tmp_path / f"{name}.nii.gz")
    pair = [str(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving")]
    with pytest.raises(SystemExit, match="2"):
        main(["register", *pair, "-o", str(tmp_path / "out"), "--checkpoint", "large"])
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()
