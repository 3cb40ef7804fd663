"""Where kernels are compiled and kept, and what happens without Numba, in forked processes and in read-only folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import learnreg
from learnreg.kernels import compiled

WARP = """
import sys
{before}
import torch, learnreg
torch.set_num_threads(1)
grid = learnreg.Grid.regular((16, 16, 16))
image = learnreg.Image(torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)), grid)
field = torch.full((1, 3, 8, 8, 8), 0.3)
warped = learnreg.warp(image, learnreg.Displacement(field, grid.resized((8, 8, 8))), grid).data
print(float(warped.double().sum()), "numba" in sys.modules)
"""


def warped(before: str = "", **environment: str) -> tuple[float, bool]:
    """Sum of an image that another process warps, and whether Numba was imported there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WARP.format(before=before)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    total, imported = done.stdout.split()
    return float(total), imported == "True"


def test_without_numba_plain_pytorch_runs():
    fast, imported = warped()
    assert imported
    slow, _ = warped("sys.modules['numba'] = None  # an import raises ImportError")
    assert slow == pytest.approx(fast, rel=1e-6)
    disabled, _ = warped(NUMBA_DISABLE_JIT="1")
    assert disabled == slow


def test_importing_learnreg_does_not_import_numba():
    code = "import sys, learnreg, learnreg.methods.iterative; learnreg.warp; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_code_is_kept_where_the_user_says(tmp_path):
    first = warped(NUMBA_CACHE_DIR=str(tmp_path))
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nbc")}
    assert kept
    assert warped(NUMBA_CACHE_DIR=str(tmp_path)) == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nbc")} == kept


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path):
    """A read-only package without a home, as in a container; and a disk that is full when the code is written."""
    if os.access("/", os.W_OK) and os.geteuid() == 0:
        readonly = "import numba.core.caching as c; c.CacheImpl._locator_classes = []; "
    else:
        package = tmp_path / "site" / "learnreg"
        shutil.copytree(Path(learnreg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for folder in [package, *(p for p in package.rglob("*") if p.is_dir())]:
            folder.chmod(0o555)
        readonly = f"sys.path.insert(0, {str(package.parent)!r}); "
    wanted = warped()
    assert warped(readonly, HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent") == wanted
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
    assert warped(full, NUMBA_CACHE_DIR=str(tmp_path / "full")) == wanted


@pytest.mark.slow
def test_two_processes_that_compile_at_once(tmp_path):
    code = WARP.format(before="")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate()[0] for process in running]
    assert answers[0] == answers[1] != ""


class Warped(torch.utils.data.Dataset):
    """Images that are warped where they are read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        grid = learnreg.Grid.regular((48, 48, 48))
        image = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(index))
        field = learnreg.Displacement(torch.full((1, 3, *grid.shape), 0.4), grid)
        return learnreg.warp(learnreg.Image(image, grid), field, grid).data


def test_forked_workers_of_a_loader(monkeypatch):
    """Also after threads were used in the process that is forked, which the workers do not have."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # only for kernels: OpenMP's threads do not survive a fork
    here = [Warped()[k] for k in range(2)]
    assert compiled._POOLS
    loader = DataLoader(Warped(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    for wanted, found in zip(here, loader, strict=True):
        assert torch.equal(wanted, found)
