"""Many pairs: each is registered once, whatever fails or is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from learnreg.apps.batch import read_jobs
from learnreg.apps.main import main
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.io import write_image
from learnreg.networks import UNet
from learnreg.networks.checkpoint import KEY, recipe
from learnreg.transforms import Affine
from learnreg.transforms.files import read_transform, write_transform
from tests.conftest import blob_image

GRID = Grid.regular((12, 12, 12), 2.0)
QUICK = ("transform", "metrics")
WRITTEN = {"metrics.json", "report.html", "transform.h5"}  # of each pair by default


def make_pairs(folder, count, *, extra=()):
    """Write images, shifted by 0, 1, 2, 3 mm, and a table of pairs."""
    (folder / "images").mkdir(parents=True)
    for k in range(4):
        image = blob_image(GRID, (float(k), 0.0, 0.0))
        write_image(image.data[0], GRID, folder / "images" / f"s{k}.nii.gz")
    rows = [f"p{k},images/s{k % 4}.nii.gz,images/s{(k + 1) % 4}.nii.gz" for k in range(count)]
    (folder / "pairs.csv").write_text("\n".join(["name,fixed,moving", *rows, *extra]) + "\n")
    return folder / "pairs.csv"


def batch(*arguments):
    """Run ``learnreg batch`` and return its exit status."""
    try:
        main(["batch", *map(str, arguments), "--quiet"])
    except SystemExit as ended:
        return ended.code
    return 0


def quick(*arguments):
    """Run it without reports, which take a second each."""
    return batch(*arguments, "--save", *QUICK)


def rows_of(file):
    with file.open(newline="") as lines:
        return {row["pair"]: row for row in csv.DictReader(lines)}


def test_a_folder_and_a_row_per_pair(tmp_path):
    table = make_pairs(tmp_path, 3)
    assert batch(table, "-o", tmp_path / "out", "--method", "rigid") == 0
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert list(rows) == ["p0", "p1", "p2"]
    for name, row in rows.items():
        assert row["status"] == "done"
        assert float(row["ncc_after"]) > float(row["ncc_before"])
        assert row["verdict"] in ("PASS", "WARN", "FAIL")
        assert bool(row["verdict_reasons"]) == (row["verdict"] != "PASS")
        assert {file.name for file in (tmp_path / "out" / name).iterdir()} == WRITTEN
        assert f'href="{name}/report.html"' in (tmp_path / "out" / "index.html").read_text()
        shift = read_transform(tmp_path / "out" / name / "transform.h5", ndim=3)(torch.zeros(1, 1, 3)).flatten()
        assert shift.tolist() == pytest.approx([1, 0, 0], abs=0.2)


def test_the_table_tells_that_an_image_is_noise(tmp_path):
    table = make_pairs(tmp_path, 1)
    noise = torch.rand(1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    write_image(noise, GRID, tmp_path / "images" / "s1.nii.gz")
    assert batch(table, "-o", tmp_path / "out", "--method", "rigid") == 0
    row = rows_of(tmp_path / "out" / "results.csv")["p0"]
    assert row["verdict"] == "FAIL"
    assert "an image looks like noise; " in row["verdict_reasons"]
    reasons = json.loads((tmp_path / "out" / "p0" / "metrics.json").read_text())["verdict_reasons"]
    assert "; ".join(reasons) == row["verdict_reasons"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_pairs_go_through_a_network_together(tmp_path, jobs):
    """With the result of each alone, a pair that cannot be read, an own start, and a last group that is not full."""
    write_transform(Affine.translation([1.0, 0.0, 0.0]), GRID, tmp_path / "start.tfm")
    table = make_pairs(tmp_path, 4, extra=["bad,images/bad.nii.gz,images/s0.nii.gz"])
    (tmp_path / "images" / "bad.nii.gz").write_bytes(b"no image")
    lines = table.read_text().splitlines()
    lines = [f"{line},{'initial' if not k else 'start.tfm' if k == 2 else ''}" for k, line in enumerate(lines)]
    table.write_text("\n".join([lines[0], lines[-1], *lines[1:-1]]) + "\n")
    common = (table, "--checkpoint", "hippocampus", "--jobs", jobs)
    assert quick(*common, "-o", tmp_path / "alone") == 1
    assert quick(*common, "-o", tmp_path / "out", "--batch", 3) == 1
    for name in ("p0", "p1", "p2", "p3"):
        one, other = (read_transform(tmp_path / out / name / "transform.h5") for out in ("alone", "out"))
        assert (one.displacement(GRID) - other.displacement(GRID)).abs().max() < 1e-3
        assert one.displacement(GRID).abs().max() > 0.05
    assert rows_of(tmp_path / "out" / "results.csv")["bad"]["status"] == "failed"


def test_a_batch_needs_a_network(tmp_path, capsys):
    table = make_pairs(tmp_path, 1)
    assert batch(table, "-o", tmp_path / "out", "--method", "rigid", "--batch", 2) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_only_what_is_asked_for_is_written(tmp_path):
    table = make_pairs(tmp_path, 1)
    assert batch(table, "-o", tmp_path / "out", "--method", "rigid", "--save", "warped", "figure") == 0
    written = sorted(file.name for file in (tmp_path / "out" / "p0").iterdir())
    assert written == ["figure.png", "metrics.json", "warped.nii.gz"]


def test_a_pair_that_fails_has_its_reason_and_the_others_are_done(tmp_path, capsys):
    table = make_pairs(tmp_path, 2, extra=["bad,images/bad.nii.gz,images/s0.nii.gz"])
    (tmp_path / "images" / "bad.nii.gz").write_bytes((tmp_path / "images" / "s0.nii.gz").read_bytes()[:500])
    arguments = (table, "-o", tmp_path / "out", "--method", "rigid")
    assert quick(*arguments) == 1
    assert "1 of 3 pairs failed" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [row["status"] for row in rows.values()] == ["done", "done", "failed"]
    assert "bad.nii.gz" in rows["bad"]["reason"]
    assert not (tmp_path / "out" / "bad").exists()

    write_image(blob_image(GRID).data[0], GRID, tmp_path / "images" / "bad.nii.gz")
    before = (tmp_path / "out" / "p0" / "transform.h5").stat().st_mtime_ns
    assert quick(*arguments) == 1  # what failed is not tried again unasked
    assert quick(*arguments, "--retry") == 0
    assert {row["status"] for row in rows_of(tmp_path / "out" / "results.csv").values()} == {"done"}
    assert (tmp_path / "out" / "p0" / "transform.h5").stat().st_mtime_ns == before
    assert not list((tmp_path / "out" / "failed").iterdir())


def test_a_bug_in_one_pair_keeps_its_traceback(tmp_path, monkeypatch):
    table = make_pairs(tmp_path, 2)

    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("learnreg.apps.batch.measure", broken)
    assert quick(table, "-o", tmp_path / "out", "--method", "rigid") == 1
    failed = json.loads((tmp_path / "out" / "failed" / "p0.json").read_text())
    assert failed["reason"] == "ZeroDivisionError: a bug"
    assert failed["traceback"][-1] == "ZeroDivisionError: a bug"
    assert not (tmp_path / "out" / "p0").exists()


def test_shards_are_disjoint_and_complete(tmp_path):
    table = make_pairs(tmp_path, 5)
    out = tmp_path / "out"
    assert quick(table, "-o", out, "--method", "rigid", "--shard", "2/2") == 0
    assert list(rows_of(out / "results-2-of-2.csv")) == ["p1", "p3"]
    assert not (out / "results.csv").exists()
    assert quick(table, "-o", out, "--method", "rigid", "--shard", "1/2") == 0
    assert list(rows_of(out / "results.csv")) == ["p0", "p1", "p2", "p3", "p4"]


def test_other_options_in_a_used_folder_are_refused(tmp_path, capsys):
    table = make_pairs(tmp_path, 1)
    assert quick(table, "-o", tmp_path / "out", "--method", "rigid") == 0
    assert quick(table, "-o", tmp_path / "out", "--method", "affine") == 2
    assert "p0 was made with other options; give another folder" in capsys.readouterr().err


def test_a_changed_file_is_never_taken_as_done(tmp_path, capsys):
    table = make_pairs(tmp_path / "one", 2)
    out, first = tmp_path / "out", tmp_path / "one" / "images" / "s0.nii.gz"
    assert quick(table, "-o", out, "--method", "rigid") == 0
    before = (out / "p0" / "metrics.json").read_text()
    os.utime(first, (1e9, 1e9))  # copied: another date, the same content
    assert quick(table, "-o", out, "--method", "rigid") == 0
    (tmp_path / "one").rename(tmp_path / "two")
    table = tmp_path / "two" / "pairs.csv"
    assert quick(table, "-o", out, "--method", "rigid") == 0
    assert (out / "p0" / "metrics.json").read_text() == before
    write_image(blob_image(GRID, (1.0, 2.0, 0.0)).data[0], GRID, tmp_path / "two" / "images" / "s0.nii.gz")
    assert quick(table, "-o", out, "--method", "rigid") == 2
    assert "p0 was made from files with another content; give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,fixed,moving\na,images/s0.nii.gz,images/s1.nii.gz\na,images/s1.nii.gz,images/s2.nii.gz\n", "named 'a'"),
        ("fixed,moving\nimages/s0.nii.gz,images/s1.nii.gz\nimages/s0.nii.gz,images/s1.nii.gz\n", "rows 1 and 2"),
        ("image\nimages/s0.nii.gz\n", "columns fixed,moving"),
        ("fixed,moving,initial\nimages/s0.nii.gz,images/s1.nii.gz,no.h5\n", "No such file: .*no.h5"),
        ("name,fixed,moving\nfailed,images/s0.nii.gz,images/s1.nii.gz\n", "row 1 is named 'failed'"),
    ],
)
def test_tables_are_checked_before_the_work(content, message, tmp_path):
    table = make_pairs(tmp_path, 1)
    table.write_text(content)
    with pytest.raises(InputError, match=message):
        read_jobs(str(table))


def test_pairs_without_names_are_named_by_their_files(tmp_path):
    table = make_pairs(tmp_path, 1)
    table.write_text("fixed,moving\nimages/s0.nii.gz,images/s1.nii.gz\n")
    assert [job.name for job in read_jobs(str(table))] == ["s0__s1"]


def test_names_come_from_a_tsv_too(tmp_path):
    table = make_pairs(tmp_path, 2)
    other = table.with_suffix(".tsv")
    other.write_text(table.read_text().replace(",", "\t"))
    assert [job.name for job in read_jobs(str(other))] == ["p0", "p1"]


def test_an_initial_transform_per_pair(tmp_path):
    table = make_pairs(tmp_path, 1)
    out = tmp_path / "out"
    assert quick(table, "-o", out, "--method", "rigid") == 0
    table.write_text("name,fixed,moving,initial\nq,images/s0.nii.gz,images/s1.nii.gz,out/p0/transform.h5\n")
    assert read_jobs(str(table))[0].initial == out / "p0" / "transform.h5"
    assert quick(table, "-o", out, "--method", "rigid") == 0


@pytest.mark.parametrize("more", [(), ("--batch", 2)])
def test_the_start_of_a_pair_is_found_by_a_word(more, tmp_path):
    """As ``learnreg register --initial`` finds it; another word is another result."""
    table, out = make_pairs(tmp_path, 2), tmp_path / "out"
    (tmp_path / "com.tfm").write_text("no transform")
    network = {"_target_": "learnreg.networks.UNet", "ndim": 3, "channels": [4]}  # a new one leaves them as they are
    objective = {"_target_": "learnreg.objective.Objective", "similarity": {"_target_": "learnreg.similarity.MSE"}}
    weights = {f"network.{key}": value for key, value in UNet(3, (4,)).state_dict().items()}
    stored = recipe(network, objective, {"spacing": 1.0, "shape": [32, 32, 32]})
    torch.save({"state_dict": weights, KEY: stored}, tmp_path / "new.ckpt")
    for k in range(2):
        content = blob_image(GRID, (8.0, 0.0, 0.0) if k else (0.0, 0.0, 0.0), radii=(5.0, 5.0, 5.0))
        write_image(content.data[0], GRID, tmp_path / "images" / f"s{k}.nii.gz")
    images = "images/s0.nii.gz,images/s1.nii.gz"
    table.write_text(f"name,fixed,moving,initial\nfound,{images},com\nstays,{images},identity\n")
    assert [job.initial for job in read_jobs(table)] == ["com", "identity"]
    arguments = (table, "-o", out, "--checkpoint", tmp_path / "new.ckpt", *more)
    assert quick(*arguments) == 0
    center = torch.zeros(1, 1, 3)
    found, stays = (read_transform(out / name / "transform.h5")(center)[0, 0, 0] for name in ("found", "stays"))
    assert found == pytest.approx(8, abs=0.5)
    assert abs(stays) < 0.1
    assert quick(*arguments) == 0
    table.write_text(table.read_text().replace("identity", "com"))
    assert quick(*arguments) == 2


@pytest.mark.slow
def test_processes_give_the_same_results(tmp_path):
    table = make_pairs(tmp_path, 4)
    for jobs in (1, 2):
        assert quick(table, "-o", tmp_path / f"out{jobs}", "--method", "rigid", "--jobs", jobs, "--threads", 1) == 0
    one, two = (rows_of(tmp_path / f"out{jobs}" / "results.csv") for jobs in (1, 2))
    for name, row in one.items():
        assert float(row["ncc_after"]) == pytest.approx(float(two[name]["ncc_after"]), abs=1e-6)


@pytest.mark.slow
def test_a_killed_batch_goes_on(tmp_path):
    """Two shards, one killed halfway and started again; each pair is there once and whole."""
    table, out = make_pairs(tmp_path, 40), tmp_path / "out"

    def start(shard):
        command = [sys.executable, "-m", "learnreg.apps.main", "batch", table, "-o", out, "--method", "rigid"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*map(str, command), "--shard", shard, "--quiet", "--save", *QUICK], env=environment)

    first, second = start("1/2"), start("2/2")
    while len(list(out.glob("p*"))) < 6:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    whole = {folder.name: folder.stat().st_mtime_ns for folder in out.glob("p*")}
    assert len(whole) < 40
    for folder in out.glob("p*"):
        assert {file.name for file in folder.iterdir()} == {"transform.h5", "metrics.json"}
    assert start("1/2").wait() == 0
    assert second.wait() == 0
    rows = rows_of(out / "results.csv")
    assert len(rows) == 40
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in whole.items())
    assert not list(out.glob(".part-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "settings"),
    [("slurm", ["cluster=local", "timeout_min=10"]), ("ray", ["num_cpus=1", "include_dashboard="])],
)
def test_engines_run_all_shards(engine, settings, tmp_path):
    pytest.importorskip("submitit" if engine == "slurm" else "ray")
    table = make_pairs(tmp_path, 4, extra=["bad,images/bad.nii.gz,images/s0.nii.gz"])
    (tmp_path / "images" / "bad.nii.gz").write_bytes(b"nothing")
    arguments = ["-o", str(tmp_path / "out"), "--method", "rigid", "--on", engine, "--shards", "2"]
    command = [sys.executable, "-m", "learnreg.apps.main", "batch", str(table), *arguments, "--quiet"]
    done = subprocess.run([*command, *(["--engine", *settings] if settings else [])], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # one pair cannot be read
    rows = rows_of(tmp_path / "out" / "results.csv")
    assert [row["status"] for row in rows.values()] == ["done"] * 4 + ["failed"]


@pytest.mark.slow
def test_a_node_of_ray_is_killed_and_each_pair_is_done_once(tmp_path):
    """Two local nodes; a shard that is lost with its node starts again on the other one, and skips what it had done."""
    pytest.importorskip("ray")
    count, out = int(os.environ.get("LEARNREG_PAIRS", "40")), tmp_path / "out"
    table = make_pairs(tmp_path, count)
    text = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-m", "tests.apps.ray_nodes"], **text) as nodes:
        address = next(line.strip() for line in nodes.stdout if line.strip().count(":") == 1)
        command = [sys.executable, "-m", "learnreg.apps.main", "batch", str(table), "-o", str(out)]
        command += [
            "--checkpoint",
            "hippocampus",
            "--on",
            "ray",
            "--shards",
            "4",
            "--engine",
            f"address={address}",
            "--quiet",
        ]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(out.glob("*/metrics.json"))) < 6:
            assert running.poll() is None
            time.sleep(0.2)
        print(file=nodes.stdin, flush=True)
        assert "killed" in next(nodes.stdout)
        before = {file: file.stat().st_mtime_ns for file in out.glob("*/metrics.json")}
        status = running.wait(300 + count)
        print(file=nodes.stdin, flush=True)
    assert status == 0
    rows = rows_of(out / "results.csv")
    assert sorted(rows) == sorted(f"p{k}" for k in range(count))
    assert {row["status"] for row in rows.values()} == {"done"}
    assert len(before) < count
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert not list(out.glob(".part-*"))


def test_parameters_of_an_engine_are_pairs(tmp_path, capsys):
    table = make_pairs(tmp_path, 1)
    assert batch(table, "-o", tmp_path / "out", "--on", "slurm", "--engine", "fast") == 2
    assert "--engine takes KEY=VALUE" in capsys.readouterr().err
