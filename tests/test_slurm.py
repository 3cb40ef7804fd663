"""The batch files of ``scripts/slurm`` on a SLURM cluster of two virtual nodes, on this machine."""

import csv
import getpass
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.apps.test_batch import make_pairs, rows_of
from tests.training.test_scale import Blobs, fit, module

ROOT = Path(__file__).resolve().parents[1]
needed = ("slurmctld", "slurmd", "munged", "sbatch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.skipif(not all(map(shutil.which, needed)), reason="SLURM is not installed: apt install slurm-wlm"),
]
SETTINGS = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort=16817
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node-%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=4000
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""
TRAINING = (
    "experiment=shapes",
    "data.space.shape=[16,16,16]",
    "data.pairs=4",
    "data.validation_pairs=3",
    "network=unet",
    "network.channels=[4,8]",
    "trainer.accelerator=cpu",
    "trainer.max_time=null",
    "trainer.check_val_every_n_epoch=2",
    "callbacks.gap=null",
    "callbacks.pictures=null",
    "report_pairs=0",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment of the commands of a cluster that runs until the tests have ended."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    settings = folder / "slurm.conf"
    settings.write_text(SETTINGS.format(host=host, folder=folder, user=getpass.getuser()))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = {
        **os.environ,
        "SLURM_CONF": str(settings),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    places = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munge.pid"}
    places |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in places.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    services = []
    for command in commands:
        with (folder / "output.log").open("a") as log:
            services.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        time.sleep(1)
    wait(lambda: "idle" in told(environment, "sinfo", "-h", "-o", "%T") or None, 30)
    yield environment
    for service in reversed(services):
        service.terminate()
        service.wait()


def told(environment, *command, folder=None):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.strip()


def wait(happened, seconds=120):
    """Wait until a function returns something; return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = happened()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"nothing in {seconds} s")


def ended(environment, job):
    """The state of a job that has ended, or None."""
    state = told(environment, "scontrol", "show", "job", job, "-o").partition("JobState=")[2].split()[0]
    return None if state in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING") else state


def test_a_training_on_two_nodes_is_stopped_and_goes_on(cluster, tmp_path):
    shutil.copy(ROOT / "train.py", tmp_path)
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", str(ROOT / "scripts/slurm/train.sh")]
    job = told(cluster, *command, *TRAINING, "trainer.max_epochs=40", folder=tmp_path)
    run = tmp_path / "runs" / "shapes" / f"job-{job}"
    last = run / "checkpoints" / "last.ckpt"
    wait(last.exists)
    told(cluster, "scancel", "--signal=TERM", job)
    output = tmp_path / f"slurm-{job}.out"
    wait(lambda: "Stopped by SIGTERM" in output.read_text())
    stopped = torch.load(last, weights_only=True)["global_step"]
    wait(lambda: "Restarts=1" in told(cluster, "scontrol", "show", "job", job))
    time.sleep(5)  # Slurm revokes credentials older than the requeue, which it dates in whole seconds
    told(cluster, "scontrol", "update", f"job={job}", "StartTime=now")
    assert wait(lambda: ended(cluster, job), 300) == "COMPLETED", output.read_text()
    assert [folder.name for folder in run.parent.iterdir()] == [run.name]
    assert stopped < torch.load(last, weights_only=True)["global_step"] == 80  # 40 epochs of 2 steps on 2 processes
    with (run / "metrics" / "metrics.csv").open(newline="") as lines:
        losses = [int(row["step"]) for row in csv.DictReader(lines) if row["train/loss"]]
    assert losses == list(range(9, 80, 10))  # each tenth step once


def test_an_array_job_registers_each_pair_once(cluster, tmp_path):
    table = make_pairs(tmp_path, 6)
    script = str(ROOT / "scripts/slurm/batch.sh")
    job = told(
        cluster, "sbatch", "--parsable", "--array=1-2", "--cpus-per-task=1", script, str(table), "-o", "out", "--method", "rigid",
        folder=tmp_path,
    )  # fmt: skip
    wait(lambda: all(ended(cluster, f"{job}_{task}") for task in (1, 2)))
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [row["status"] for row in rows.values()] == ["done"] * 6


def test_submitit_submits_the_shards(cluster, tmp_path):
    pytest.importorskip("submitit")
    table = make_pairs(tmp_path, 4)
    told(
        cluster, "learnreg", "batch", str(table), "-o", "out", "--method", "rigid", "--on", "slurm", "--shards", "2",
        "--engine", "timeout_min=10", "cpus_per_task=1", "--quiet", folder=tmp_path,
    )  # fmt: skip
    assert [row["status"] for row in rows_of(tmp_path / "out" / "results.csv").values()] == ["done"] * 4


def test_a_sweep_submits_its_jobs(cluster, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]
    sweep += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_epochs=2", "seed=1,2"]
    told(cluster, sys.executable, str(ROOT / "train.py"), "-m", *TRAINING, *sweep, folder=tmp_path)
    assert len(list((tmp_path / "sweep").glob("*/checkpoints/last.ckpt"))) == 2


def test_srun_trains_as_one_process_with_twice_the_batch(cluster, tmp_path):
    (one, validations), *_ = fit(tmp_path / "one", module(), Blobs(2))
    (tmp_path / "two").mkdir()
    command = ["srun", "-N2", "-n2", "--ntasks-per-node=1", sys.executable, "-m", "tests.training.rank"]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "1", "2"],
        env=cluster,
        cwd=ROOT,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in range(2))
    assert first[1][-1]["val/loss"] == pytest.approx(validations[-1]["val/loss"], rel=1e-4)
    for key, value in first[0].items():
        assert torch.equal(value, second[0][key]), key
        torch.testing.assert_close(value, one[key], rtol=1e-6, atol=1e-6)
