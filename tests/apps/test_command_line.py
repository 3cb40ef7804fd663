import json
import shutil
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.image import imread

from learnreg.apps.evaluate import method_names
from learnreg.apps.main import main
from learnreg.configs.models import model_files
from learnreg.grid import Grid
from learnreg.io import read_image, to_sitk, write_image
from learnreg.transforms import Symmetric
from tests.conftest import blob_image, make_grid
from tests.networks.test_checkpoint import save
from tests.test_configs import run

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path):
    """A pair on different oblique anisotropic grids, with labels."""
    fixed = blob_image(make_grid("RAS", (24, 26, 30), (1.2, 1.2, 1.5), torch.float32))
    moving = blob_image(
        make_grid("oblique", (26, 30, 26), (1.3, 1.1, 1.5), torch.float32), (2.5, -1.5, 1.0), (8.0, 8.0, 6.5)
    )
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image.data[0] * 800 + 100, image.grid, tmp_path / f"{name}.nii.gz")
        write_image(image.labels[0].to(torch.int16), image.grid, tmp_path / f"{name}_labels.nii.gz")
    return tmp_path


def call(*arguments):
    main([str(a) for a in arguments])


def test_register_writes_everything(files, capsys):
    out = files / "out"
    call(
        "register",
        files / "fixed.nii.gz",
        files / "moving.nii.gz",
        "-o",
        out,
        "--method",
        "fast",
        "--fixed-labels",
        files / "fixed_labels.nii.gz",
        "--moving-labels",
        files / "moving_labels.nii.gz",
    )
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "metrics.json", "transform.h5", "warped.nii.gz"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seconds"] > 0
    assert metrics["after"]["dice"] > metrics["before"]["dice"] + 0.1
    assert metrics["after"]["ncc"] > metrics["before"]["ncc"]
    assert imread(out / "figure.png").shape[1] > 800
    shown = capsys.readouterr().out
    assert "Dice" in shown
    assert metrics["verdict"] in ("PASS", "WARN", "FAIL")
    assert 0 < metrics["verdict_measures"]["similarity"] <= 1
    assert f"\nverdict: {metrics['verdict']}" in shown
    assert {"hd95_mm", "assd_mm", "nsd"} <= metrics["after"].keys()
    fixed, moving = (sitk.ReadImage(str(files / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.ReadTransform(str(out / "transform.h5")), sitk.sitkLinear, 0.0)
    )
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "warped.nii.gz")))
    assert (np.abs(theirs - ours) <= 0.01 * np.ptp(ours)).mean() > 0.99

    call(
        "apply",
        out / "transform.h5",
        files / "moving_labels.nii.gz",
        "-r",
        files / "fixed.nii.gz",
        "-o",
        files / "l.nii.gz",
        "--labels",
    )
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "l.nii.gz")))
    assert set(np.unique(labels)) == {0, 1, 2}
    call("apply", out / "transform.h5", files / "moving.nii.gz", "-r", files / "fixed.nii.gz", "-o", files / "w.nii.gz")
    assert np.allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(files / "w.nii.gz"))), ours, atol=0.5)

    call(
        "register",
        files / "fixed.nii.gz",
        files / "moving.nii.gz",
        "-o",
        files / "again",
        "--method",
        "affine",
        "--initial",
        out / "transform.h5",
        "--quiet",
    )
    assert (files / "again" / "metrics.json").exists()


def test_register_2d(tmp_path):
    grid = make_grid(shape=(24, 26, 30)).resized((24, 26, 30))
    image = blob_image(grid, radii=(20.0, 14.0, 12.0)).data[0, 0].float()
    for name, values in (("f.png", image[12]), ("m.png", image[12].roll(2, 0))):
        sitk.WriteImage(
            sitk.GetImageFromArray((255 * values.numpy()).clip(0, 255).astype(np.uint8)), str(tmp_path / name)
        )
    call("register", tmp_path / "f.png", tmp_path / "m.png", "-o", tmp_path / "out", "--method", "affine", "--quiet")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["after"]["ncc"] > max(0.98, metrics["before"]["ncc"])


def released_copy(file):
    """The model that comes with learnreg, under another name."""
    return Path(shutil.copy(model_files()["hippocampus"], file))


def flagged(flag, values):
    """``flag value`` for each of them."""
    return [part for value in values for part in (flag, value)]


def test_evaluate(files, capsys):
    for kind, suffix in (("images", ""), ("labels", "_labels")):
        (files / "set" / kind).mkdir(parents=True)
        for name in ("fixed", "moving"):
            (files / f"{name}{suffix}.nii.gz").rename(files / "set" / kind / f"{name}.nii.gz")
    call(
        "evaluate",
        files / "set",
        "--method",
        "affine",
        "--method",
        "fast",
        "--shape",
        40,
        40,
        40,
        "--spacing",
        "1.5",
        "-o",
        files / "t",
        "--quiet",
    )
    printed = capsys.readouterr().out
    assert "SDlogJ L2R" in printed
    content = json.loads((files / "t" / "metrics.json").read_text())
    dice = {row["method"]: row["dice"] for row in content["summary"]}
    assert dice["fast"] > max(dice["affine"], dice["start"]) + 0.05
    assert len((files / "t" / "cases.csv").read_text().splitlines()) == 7
    assert (files / "t" / "table.md").exists()

    networks = [released_copy(files / f"{name}.safetensors") for name in ("one", "other")]
    call("evaluate", files / "set", "--block", "0:2", "--refine", 1, "--quiet", *flagged("--checkpoint", networks))
    printed = capsys.readouterr().out
    for network in networks:
        assert f"| one-shot {network} " in printed
        assert f"| one-shot {network} + refine 1 " in printed
    assert "at least two images" in fails(capsys, "evaluate", files / "set", "--block", "0:1")


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_an_image_of_zeros_is_refused_as_constant_and_not_taken_for_a_segmentation(files, capsys):
    zeros = sitk.ReadImage(str(files / "moving.nii.gz"), sitk.sitkInt16) * 0
    sitk.WriteImage(zeros, str(files / "zeros.nii.gz"))
    for pair in (("fixed", "zeros"), ("zeros", "moving")):
        images = (files / f"{name}.nii.gz" for name in pair)
        told = fails(capsys, "register", *images, "-o", files / "out", "--method", "rigid", "--quiet")
        assert "zeros.nii.gz is constant" in told
    assert not (files / "out").exists()


def test_bad_input_is_one_line_and_leaves_nothing(files, capsys):
    fixed, moving, out = files / "fixed.nii.gz", files / "moving.nii.gz", files / "out"
    good = sitk.ReadImage(str(fixed))

    def written(name, array, vector=False):
        image = sitk.GetImageFromArray(array, isVector=vector)
        sitk.WriteImage(image, str(files / name))
        return files / name

    zeros = written("zeros.nii.gz", np.zeros((8, 8, 8), np.float32))
    four = written("four.nii.gz", np.zeros((2, 8, 8, 8), np.float32))
    color = written("color.png", np.zeros((8, 8, 3), np.uint8), vector=True)
    holes = sitk.GetArrayFromImage(good)
    holes[3, 3, 3] = np.inf
    infinite = written("infinite.nii.gz", holes)
    flat = written("flat.mha", np.random.rand(8, 8).astype(np.float32))
    short = written("short.nii.gz", np.zeros((4, 4, 4), np.uint8))
    text = files / "text.txt"
    text.write_text("no image")
    save(files / "old.ckpt", format=0)
    cases = [
        ((files / "none.nii.gz", moving), "No such image"),
        ((four, moving), "is 4-D"),
        ((color, moving), "one gray channel"),
        ((zeros, moving), "zeros.nii.gz is constant"),
        ((infinite, moving), "1 infinite"),
        ((flat, moving), "flat.mha is 2-D and the moving image"),
        ((text, moving), "cannot be read as an image"),
        ((fixed, moving, "--fixed-labels", short, "--moving-labels", short), "labels"),
        ((fixed, moving, "--fixed-labels", short), "together"),
        ((fixed, moving, "--method", "deformabel"), "did you mean 'deformable'"),
        ((fixed, moving, "--checkpoint", files / "none.ckpt"), "No such checkpoint"),
        ((fixed, moving, "--checkpoint", text), "read safely"),
        ((fixed, moving, "--checkpoint", files / "old.ckpt"), "checkpoint format 0"),
        ((fixed, moving, "--refine", "3"), "--checkpoint too"),
        ((fixed, moving, "--method", "fast", "--checkpoint", text), "not both: a checkpoint holds a network"),
        ((fixed, moving, "--device", "quantum"), "unknown"),
        ((fixed, moving, "--threads", "0"), "at least 1"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, "register", *arguments, "-o", out)
        assert not out.exists(), arguments
    call("register", fixed, moving, "-o", out, "--method", "affine", "--quiet")
    assert "--overwrite" in fails(capsys, "register", fixed, moving, "-o", out)
    call("register", fixed, moving, "-o", out, "--method", "affine", "--quiet", "--overwrite")


def test_bad_evaluations(files, capsys):
    assert "No such data set" in fails(capsys, "evaluate", files / "nothing")
    assert "goes beyond" in fails(capsys, "evaluate", files, "--block", "0:99")


def test_evaluate_without_labels(files, capsys):
    (files / "set").mkdir()
    for name in ("fixed", "moving"):
        (files / f"{name}.nii.gz").rename(files / "set" / f"{name}.nii.gz")
    call("evaluate", files / "set", "--method", "rigid", "-o", files / "out", "--quiet")
    table = capsys.readouterr().out.splitlines()
    assert "correlation" in table[0] and "SDlogJ" in table[0] and "Dice" not in table[0]
    start, rigid = json.loads((files / "out" / "metrics.json").read_text())["summary"]
    assert rigid["ncc"] > start["ncc"]
    assert rigid["information"] > start["information"]


def test_debug_shows_the_traceback(files):
    with pytest.raises(FileNotFoundError):
        call("register", files / "none.nii.gz", files / "none.nii.gz", "-o", files / "o", "--debug")


def test_methods_lists_presets(capsys):
    call("methods")
    assert "deformable" in capsys.readouterr().out


def test_runs_are_compared(tmp_path, capsys):
    """Two seeds of one network share a row, which names both, the best first; what was the same is left out."""
    scores = {("unet", 0): (0.5, 0.70, 0.69), ("unet", 1): (0.5, 0.72), ("pyramid", 0): (0.5, 0.81, 0.80)}
    for (network, seed), dice in scores.items():
        folder = tmp_path / f"{network}{seed}"
        (folder / ".hydra").mkdir(parents=True)
        (folder / "metrics").mkdir()
        (folder / "config.yaml").write_text("callbacks: {best: {monitor: val/dice, mode: max}}")
        (folder / ".hydra" / "config.yaml").write_text("not: read")
        (folder / ".hydra" / "overrides.yaml").write_text(f"[experiment=x, network={network}, seed={seed}]")
        lines = ["epoch,step,train/loss,val/dice,val/loss", "0,4,0.3,,"]
        lines += [f"{k},{5 * k + 4},,{value},{1 - value}" for k, value in enumerate(dice)]
        (folder / "metrics" / "metrics.csv").write_text("\n".join(lines))
    call("runs", tmp_path)
    head, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert head == ["network", "runs", "steps", "dice", "loss", "folders"]
    assert rows == [
        ["pyramid", "1", "15", "0.8100", "0.1900", str(tmp_path / "pyramid0")],
        ["unet", "2", "12 ± 2", "0.7100 ± 0.0100", "0.2900 ± 0.0100", f"{tmp_path / 'unet1'}, {tmp_path / 'unet0'}"],
    ]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("callbacks: {}")
    for folder, message in ((tmp_path / "new", "validated"), (tmp_path / "gone", "No such folder")):
        with pytest.raises(SystemExit):
            call("runs", folder)
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        call("runs", tmp_path / "empty")
    assert "holds no run" in capsys.readouterr().err


def test_help_is_fast():
    for arguments in (["--help"], ["register", "--help"], ["evaluate", "--help"]):
        began = time.perf_counter()
        done = run("-m", "learnreg.apps.main", *arguments)
        assert time.perf_counter() - began < 2
        assert done.returncode == 0
        assert "Usage: learnreg" in done.stdout


def test_to_sitk_keeps_vectors_apart():
    grid = make_grid()
    assert to_sitk(torch.zeros(3, *grid.shape), grid, vector=True).GetNumberOfComponentsPerPixel() == 3


def test_landmarks_are_measured_and_guide(files, capsys):
    points = read_image(files / "fixed.nii.gz").grid.points[0, 8:16:4, 8:16:4, 8:16:4].reshape(-1, 3)
    lines = ["x,y,z", *(",".join(f"{v:.4f}" for v in point) for point in points.tolist())]
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    both = "--landmarks", files / "f.csv", files / "m.csv"
    for file in both[1:]:
        file.write_text("\n".join(lines))
    call("register", *pair, "-o", files / "out", "--method", "lung", *both)
    metrics = json.loads((files / "out" / "metrics.json").read_text())
    assert metrics["before"]["landmarks_mm"] == 0
    assert metrics["after"]["landmarks_mm"] < 1
    shown = capsys.readouterr().out
    assert "landmarks 0.00 ->" in shown
    assert "guided by them: no measure of accuracy" in shown
    assert metrics["landmarks_guided"] is True
    call("register", *pair, "-o", files / "measured", "--method", "rigid", *both)
    assert json.loads((files / "measured" / "metrics.json").read_text())["landmarks_guided"] is False
    assert "guided" not in capsys.readouterr().out
    both[2].write_text("\n".join(lines[:-1]))
    with pytest.raises(SystemExit):
        call("register", *pair, "-o", files / "two", *both)
    assert "m.csv has 7" in capsys.readouterr().err


def test_a_template_is_written_with_its_transforms(files, capsys):
    folder = files / "data"
    folder.mkdir()
    for name, source in (("a", "fixed"), ("b", "moving"), ("c", "fixed")):
        (folder / f"{name}.nii.gz").write_bytes((files / f"{source}.nii.gz").read_bytes())
    arguments = "template", folder, "-o", files / "out", "--method", "affine", "--rounds", "1"
    call(*arguments)
    assert "round 1: spread" in capsys.readouterr().out
    names = {file.name for file in (files / "out").iterdir()}
    assert names == {"template.nii.gz", "transforms", "figure.png", "metrics.json"}
    assert {file.name for file in (files / "out" / "transforms").iterdir()} == {"a.h5", "b.h5", "c.h5"}
    with pytest.raises(SystemExit):
        call(*arguments)
    assert "already holds" in capsys.readouterr().err


def contradict(path):
    """Shift the sform of a NIfTI file by 40 mm from its qform."""
    image = nibabel.load(path)
    shifted = image.affine.copy()
    shifted[0, 3] += 40
    image.set_sform(shifted, 1)
    nibabel.save(image, path)


def test_a_template_survives_its_figure_and_records_headers(files, monkeypatch):
    def broken(*_, **__):
        raise MemoryError("not enough")

    monkeypatch.setattr("learnreg.apps.template.template_figure", broken)
    folder = files / "data"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(files / "fixed.nii.gz", folder / f"{name}.nii.gz")
    contradict(folder / "b.nii.gz")
    with pytest.warns(UserWarning, match="sform and qform|could not be drawn"):
        call("template", folder, "-o", files / "out", "--method", "affine", "--rounds", "1")
    assert {file.name for file in (files / "out").iterdir()} == {"template.nii.gz", "transforms", "metrics.json"}
    told = json.loads((files / "out" / "metrics.json").read_text())["warnings"]
    assert "sform and qform" in told[0]
    assert told[1:] == ["the figure could not be drawn: MemoryError: not enough"]


def test_an_evaluation_records_each_header_once(files):
    for kind, suffix in (("images", ""), ("labels", "_labels")):
        (files / "set" / kind).mkdir(parents=True)
        for name in ("fixed", "moving"):
            shutil.copy(files / f"{name}{suffix}.nii.gz", files / "set" / kind / f"{name}.nii.gz")
    for kind in ("images", "labels"):
        contradict(files / "set" / kind / "moving.nii.gz")
    with pytest.warns(UserWarning, match="sform and qform"):
        call("evaluate", files / "set", "--method", "rigid", "-o", files / "out", "--quiet")
    told = json.loads((files / "out" / "metrics.json").read_text())["warnings"]
    assert len(told) == 2
    assert all("sform and qform" in line for line in told)


def test_methods_of_one_stem_have_names_of_their_own():
    methods = ["affine", "a/mine.yaml", "b/mine.yaml", "b/affine.yaml", "affine"]
    assert method_names(methods) == {
        "affine": "affine",
        "a_mine": "a/mine.yaml",
        "b_mine": "b/mine.yaml",
        "b/affine.yaml": "b/affine.yaml",
    }


def test_a_symmetric_result_is_mapped_once(files, monkeypatch):
    """Scores, figure, warped image and file share one evaluation over the fixed grid."""
    evaluated = []

    def counted(self, grid):
        evaluated.append(grid.shape)
        return original(self, grid)

    original = Symmetric.map_grid
    monkeypatch.setattr(Symmetric, "map_grid", counted)
    labels = [f"--{which}-labels={files / f'{which}_labels.nii.gz'}" for which in ("fixed", "moving")]
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    call("register", *pair, "-o", files / "out", "--method", "syn-like", "--quiet", *labels)
    assert evaluated == [(24, 26, 30)]
    fixed, moving = (sitk.ReadImage(str(file)) for file in pair)
    theirs = sitk.Resample(moving, fixed, sitk.ReadTransform(str(files / "out" / "transform.h5")), sitk.sitkLinear, 0.0)
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "out" / "warped.nii.gz")))
    assert (np.abs(sitk.GetArrayFromImage(theirs) - ours) <= 0.01 * np.ptp(ours)).mean() > 0.99


def test_a_bug_keeps_its_traceback(files, monkeypatch):
    """Only bad input becomes one line."""

    def broken(*args, **kwargs):
        return 1 / 0

    monkeypatch.setattr("learnreg.apps.register.register", broken)
    with pytest.raises(ZeroDivisionError):
        call("register", files / "fixed.nii.gz", files / "moving.nii.gz", "-o", files / "out")


def test_an_output_that_cannot_be_written_is_one_line(files, capsys):
    (files / "file").write_text("in the way")
    arguments = files / "fixed.nii.gz", files / "moving.nii.gz", "-o", files / "file" / "out", "--method", "rigid"
    assert "cannot be made" in fails(capsys, "register", *arguments, "--quiet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", bytes(range(256)), "cannot be read as landmarks"),
        ("a.csv", b"x,y,z\n1,2,3\n4,5\n", "something else than numbers"),
        ("a.csv", None, "Is a directory"),
        ("a.mrk.json", b"[1, 2]", "not a markups file"),
        ("a.mrk.json", b'{"markups": [{"controlPoints": 3}]}', "not a markups file"),
        ("a.fcsv", b"# CoordinateSystem\n", "holds no landmarks"),
    ],
)
def test_bad_landmark_files_are_one_line(name, content, message, files, capsys):
    file = files / name
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    assert message in fails(capsys, "register", *pair, "-o", files / "out", "--landmarks", file, file)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_a_truncated_image_is_not_read_as_zeros(suffix, kind, files, capsys):
    """ITK's reader fills up what is missing without a word."""
    rng = np.random.default_rng(0)
    whole, part = files / f"whole{suffix}", files / f"part{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray((50 * rng.random((16, 16, 16))).astype(kind)), str(whole))
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "is damaged" in fails(capsys, "register", part, whole, "-o", files / "out")
    flags = "--fixed-labels", part, "--moving-labels", whole
    assert "is damaged" in fails(capsys, "register", whole, whole, "-o", files / "out", *flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: ${nothing}", "x has an interpolation"),
        ("a: [1", "not a valid method file"),
        ("_target_: learnreg.methods.IterativeMethod", "stages is missing"),
        (
            "_target_: learnreg.methods.IterativeMethod\nstages: {a: {_target_: learnreg.similarity.MSE}}",
            "got {'a': MSE()}",
        ),
    ],
)
def test_bad_method_files_are_one_line(text, message, files, capsys):
    (files / "own.yaml").write_text(text)
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    assert message in fails(capsys, "register", *pair, "-o", files / "out", "--method", files / "own.yaml")


def test_bad_data_sets_are_one_line(files, capsys):
    file = files / "dataset.json"
    for text in ("[1, 2]", "3"):
        file.write_text(text)
        assert "has no list" in fails(capsys, "evaluate", file)
    for text in ('{"training": [{"label": "a"}]}', '{"training": [3]}', '{"registration_val": [{"fixed": 1}]}'):
        file.write_text(text)
        assert "name of an image file" in fails(capsys, "evaluate", file)


def test_bad_run_folders_are_one_line(tmp_path, capsys):
    good, file = "callbacks: {}", tmp_path / "metrics" / "metrics.csv"
    for text in ("a: [1", "", "- 1", "x: 1", "callbacks: 3", "callbacks: {best: {x: 1}}"):
        (tmp_path / "config.yaml").write_text(text)
        assert "config.yaml" in fails(capsys, "runs", tmp_path)
    (tmp_path / "config.yaml").write_text(good)
    file.parent.mkdir()
    for text in ("step,val/loss\n1,x\n", "val/loss\n2\n", "step,val/loss\n1,2,3\n"):
        file.write_text(text)
        assert "not a table of metrics" in fails(capsys, "runs", tmp_path)


def test_outputs_that_cannot_be_written_are_told_first(files, capsys, monkeypatch):
    """An evaluation takes hours; a format that does not exist is told without ITK's traceback."""
    monkeypatch.setattr("learnreg.apps.evaluate.evaluate", lambda *args, **kwargs: pytest.fail("has begun"))
    assert "is a file; give a folder" in fails(capsys, "evaluate", files, "-o", files / "fixed.nii.gz" / "out")
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    assert "is a file; give a folder" in fails(capsys, "register", *pair, "-o", files / "fixed.nii.gz")
    shift = files / "shift.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(shift))
    for name, message in (("out.xyz", "no format has this suffix"), ("out.png", "PNG supports")):
        arguments = "apply", shift, files / "moving.nii.gz", "-r", files / "fixed.nii.gz", "-o", files / name
        assert message in fails(capsys, *arguments)
        assert not (files / name).exists()
    assert not list(files.glob(".part-*"))


def test_a_format_that_cannot_hold_the_result_is_told_first(files, capsys, monkeypatch):
    shift = files / "shift.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(shift))
    for name in ("read_transform", "warp", "sample_labels"):
        monkeypatch.setattr(f"learnreg.apps.apply.{name}", lambda *_, **__: pytest.fail("has begun"))
    arguments = "apply", shift, files / "moving_labels.nii.gz", "-r", files / "fixed.nii.gz", "-o"
    for suffix, options, message in (
        ("png", (), "PNG supports"),
        ("jpg", (), "JPEG supports"),
        ("png", ("--labels",), "PNG supports"),
        ("bmp", ("--labels",), "BMP"),
    ):
        told = fails(capsys, *arguments, files / f"out.{suffix}", *options)
        assert message in told
        assert "Give another suffix, such as .nii.gz" in told
        assert len(told.splitlines()) == 1


def test_a_transform_of_another_dimension_is_one_line(files, capsys):
    flat = files / "flat.tfm"
    sitk.WriteTransform(sitk.AffineTransform(2), str(flat))
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    assert "is 2-D, but the images are 3-D" in fails(capsys, "register", *pair, "-o", files / "out", "--initial", flat)
    assert "is 2-D" in fails(capsys, "apply", flat, pair[1], "-r", pair[0], "-o", files / "w.nii.gz")
    assert "1 value(s) per voxel" in fails(capsys, "register", *pair, "-o", files / "out", "--initial", pair[0])


@pytest.mark.parametrize("device", ["meta", "quantum"])
def test_devices_that_cannot_compute_are_one_line(device, files, capsys):
    pair = files / "fixed.nii.gz", files / "moving.nii.gz"
    assert "not available" in fails(capsys, "register", *pair, "-o", files / "out", "--device", device)


class TestResults:
    def register(self, files, out, *options):
        call("register", files / "fixed.nii.gz", files / "moving.nii.gz", "-o", out, "--method", "rigid", *options)
        return json.loads((out / "metrics.json").read_text())

    def test_a_figure_that_fails_costs_neither_image_nor_transform(self, files, capsys, monkeypatch):
        def broken(*_, **__):
            raise MemoryError("not enough")

        monkeypatch.setattr("learnreg.reporting.registration_figure", broken)
        with pytest.warns(UserWarning, match="not everything could be measured"):
            metrics = self.register(files, files / "out")
        assert metrics["warnings"] == ["not everything could be measured or drawn: MemoryError: not enough"]
        assert sorted(file.name for file in (files / "out").iterdir()) == [
            "metrics.json",
            "transform.h5",
            "warped.nii.gz",
        ]
        assert "figure.png" not in capsys.readouterr().out

    def test_the_fill_is_the_background_unless_it_is_given(self, files):
        moving = read_image(files / "moving.nii.gz")
        write_image(moving.data[0] - 1000, moving.grid, files / "moving.nii.gz")
        self.register(files, files / "a")
        assert float(read_image(files / "a" / "warped.nii.gz").data.min()) == pytest.approx(-900, abs=0.01)
        self.register(files, files / "b", "--fill", -1500)
        first, second = (read_image(files / name / "warped.nii.gz").data for name in "ab")
        assert float(second.min()) == pytest.approx(-1500, abs=0.01)
        assert torch.allclose(first[second >= -900], second[second >= -900], atol=0.01)

    def test_similarity_is_measured_where_the_moving_image_was_seen(self, files):
        fixed = read_image(files / "fixed.nii.gz")
        part = fixed.grid.cropped((0, 0, 0), (14, *fixed.grid.shape[1:]))
        write_image(fixed.data[0, :, :14] + 1000, part, files / "moving.nii.gz")
        metrics = self.register(files, files / "out")
        assert metrics["before"]["ncc"] == pytest.approx(1, abs=1e-5)
        assert metrics["after"]["ncc"] > 0.99

    def test_a_negative_is_not_praised_by_its_correlation(self, files, capsys):
        moving = read_image(files / "moving.nii.gz")
        write_image(1000 - moving.data[0], moving.grid, files / "moving.nii.gz")
        metrics = self.register(files, files / "out")
        assert metrics["after"]["mutual_information"] > metrics["before"]["mutual_information"]
        assert "different contrasts, mutual information" in capsys.readouterr().out

    def test_apply_asks_before_it_replaces(self, files):
        self.register(files, files / "out")
        paths = files / "out" / "transform.h5", files / "moving.nii.gz", "-r", files / "fixed.nii.gz"
        call("apply", *paths, "-o", files / "new.nii.gz", "--fill", 7)
        assert float(read_image(files / "new.nii.gz").data.min()) == pytest.approx(7, abs=0.01)
        with pytest.raises(SystemExit):
            call("apply", *paths, "-o", files / "new.nii.gz")
        call("apply", *paths, "-o", files / "new.nii.gz", "--overwrite")
        with pytest.raises(SystemExit):
            call("apply", *paths, "-o", files / "new.xyz")


def test_register_warns_once_of_label_maps(files):
    """Numbers of labels are no intensities; the images themselves get no such warning."""
    pair = [files / "fixed.nii.gz", files / "moving.nii.gz"]
    maps = [files / "fixed_labels.nii.gz", files / "moving_labels.nii.gz"]
    options = ("--method", "affine", "--quiet")
    with warnings.catch_warnings(record=True) as shown:
        call("register", *maps, "-o", files / "of_maps", *options)
        (told,) = (str(warning.message) for warning in shown if "segmentation" in str(warning.message))
        assert all(str(file) in told for file in maps)
        assert "--fixed-labels" in told
        assert told in json.loads((files / "of_maps" / "metrics.json").read_text())["warnings"]
        shown.clear()
        labels = ("--fixed-labels", maps[0], "--moving-labels", maps[1])
        call("register", *pair, "-o", files / "of_images", *options, *labels)
        assert not shown


def test_a_model_of_volumes_refuses_slices_with_the_remedy(tmp_path, capsys):
    """Found by random pairs: single slices are registered in their plane, for which this model has no weights."""
    write_image(torch.rand(1, 1, 16, 20), Grid.regular((1, 16, 20)), tmp_path / "slice.nii.gz")
    line = fails(capsys, "register", tmp_path / "slice.nii.gz", tmp_path / "slice.nii.gz", "-o", tmp_path / "out",
                 "--checkpoint", "hippocampus")  # fmt: skip
    assert "a single slice; give a model for such images, such as universal" in line
    assert not (tmp_path / "out").exists()
