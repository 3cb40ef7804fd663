"""Sweeps by the plugins of Hydra: pip install 'learnreg[sweep]'."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from learnreg.apps.runs import read_run
from tests.apps.test_train import SMALL, write

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SPACE = ("data.train=[0,4]", "data.validation=[4,6]", "data.space.shape=[16,16,16]", "objective=mse")
QUIET = ("trainer.enable_progress_bar=false", "callbacks.gap=null", "callbacks.pictures=null")


@pytest.fixture
def sweep(tmp_path):
    for k in range(6):
        write(tmp_path / "images" / f"s{k}.nii.gz")

    def run(*arguments):
        command = ["-m", f"data.path={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep", *SMALL, *SPACE, *QUIET]
        done = subprocess.run(
            [sys.executable, "train.py", *command, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/config.yaml"))
        return done, [read_run(folder) for folder in folders]

    return run


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_launchers(launcher, sweep):
    """A job that fails does not stop the others."""
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    done, runs = sweep(f"hydra/launcher={launcher}", "warmup=0.1,0.2,2.0")
    assert done.returncode == 1, done.stderr
    assert "1 job(s)" in done.stderr
    assert [run.choices["warmup"] for run in runs] == ["0.1", "0.2"]
    assert all(run.best for run in runs)


def test_optuna(sweep, tmp_path):
    """It minimizes the value of the best checkpoint; a trial that fails does not count."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    optuna = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler.seed=1",
    )
    done, runs = sweep(*optuna, "optimizer.lr=tag(log,interval(0.0001,0.1))", "warmup=choice(0.1,2.0)")
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert 0 < len(runs) < 4, done.stderr
    assert done.returncode == 1
    assert found["best_value"] == pytest.approx(min(run.best["val/loss"] for run in runs), rel=1e-5)
    assert len({run.choices["optimizer.lr"] for run in runs}) == len(runs)


def test_optuna_with_several_processes_is_refused(sweep):
    """Each of them would draw other values."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=2")
    done, runs = sweep(*optuna, "optimizer.lr=interval(0.0001,0.1)", "trainer=ddp", "trainer.devices=2")
    assert "A sweep (-m) with 2 processes gives each of them other values" in done.stderr
    assert "Every job of the sweep failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, runs) == (2, [])
