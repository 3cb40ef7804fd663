"""A command that is killed at any moment leaves whole files or none, and can be run again.

``LEARNREG_KILLS=20`` kills each command more often than the default suite does.
"""

import csv
import json
import os
import shutil
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import hydra  # noqa: F401 - as those of learnreg below
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from learnreg.apps import (  # noqa: F401 - the processes are forked from a server that has imported all
    apply,
    batch,
    evaluate,
    export,
    register,
    report,
    series,
    template,
    transforms,
)
from learnreg.apps.main import main
from learnreg.io import write_image
from tests.conftest import blob_image, make_grid
from tests.processes import begun, run, statuses

KILLS = int(os.environ.get("LEARNREG_KILLS", "2"))
TIMES = ("seconds", "peak_memory_mb", "cpu_seconds", "peak_mb")  # they differ from run to run, as do cpu_seconds_std
METHOD = """
defaults: [/method/affine@_here_, _self_]
stages: {rotation: null, affine: {factors: [2], iterations: [5]}}
"""
FAST = """
defaults: [/method/fast@_here_, _self_]
stages: {affine: {iterations: [3]}, deformation: {iterations: [3, 2, 2]}}
"""
COMMANDS = {  # {} is the folder of the inputs, and {out} that of the outputs
    "register": "register {}/images/a.nii.gz {}/images/b.nii.gz -o {out} --method {}/fast.yaml --inverse --report "
    "--overwrite",
    "apply": "apply {}/done/transform.h5 {}/images/b.nii.gz -r {}/images/a.nii.gz -o {out}/warped.nii.gz --overwrite",
    "compose": "compose {}/done/transform.h5 {}/done/transform.h5 -o {out}/both.h5 --overwrite",
    "invert": "invert {}/done/transform.h5 -r {}/images/b.nii.gz -o {out}/inverse.h5 --overwrite",
    "convert": "convert {}/done/transform.h5 -o {out}/field.nii.gz --overwrite",
    "jacobian": "jacobian {}/done/transform.h5 -r {}/images/a.nii.gz -o {out}/volume.nii.gz --overwrite",
    "batch": "batch {}/pairs.csv -o {out} --method {}/affine.yaml --save transform warped metrics",
    "evaluate": "evaluate {}/images -o {out} --method {}/affine.yaml --overwrite",
    "template": "template {}/images -o {out} --method {}/affine.yaml --rounds 1 --overwrite",
    "series": "series {}/series.nii.gz -o {out} --method {}/affine.yaml --rounds 1 --overwrite",
    "report": "report {out} --overwrite",
    "export": "export hippocampus -o {out}/model.safetensors --overwrite",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Three images, tables and a series of them, methods, and a finished registration."""
    folder = tmp_path_factory.mktemp("inputs")
    images = [blob_image(make_grid("RAS", (10, 11, 12), 2.0, torch.float32), (k, -k, 0.5 * k)) for k in range(3)]
    for name, image in zip("abc", images, strict=True):
        write_image(image.data[0] * 900, image.grid, folder / "images" / f"{name}.nii.gz")
    joined = sitk.JoinSeries([sitk.ReadImage(str(folder / "images" / f"{name}.nii.gz")) for name in "abc"])
    sitk.WriteImage(joined, str(folder / "series.nii.gz"))
    rows = [f"{folder}/images/{fixed}.nii.gz,{folder}/images/{moving}.nii.gz" for fixed, moving in ("ab", "bc", "ca")]
    (folder / "pairs.csv").write_text("\n".join(("fixed,moving", *rows)) + "\n")
    (folder / "affine.yaml").write_text(METHOD)
    (folder / "fast.yaml").write_text(FAST)
    pair = [str(folder / "images" / f"{name}.nii.gz") for name in "ab"]
    run(partial(call, ["register", *pair, "-o", str(folder / "done"), "--method", str(folder / "fast.yaml")]))
    return folder


def call(arguments):
    """Run a command without its lines on the screen."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        main(arguments)


def begin(command, inputs, out):
    """Make the folder of a command, and return what runs it."""
    shutil.rmtree(out, ignore_errors=True)
    if command == "report":
        shutil.copytree(inputs / "done", out)
    else:
        out.mkdir()
    return partial(call, COMMANDS[command].replace("{out}", str(out)).replace("{}", str(inputs)).split())


def files_in(out):
    """The outputs; what begins with a dot is no output."""
    names = sorted(file.relative_to(out) for file in out.rglob("*") if file.is_file())
    return [name for name in names if not any(part.startswith(".") for part in name.parts)]


def untimed(value):
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not key.startswith(TIMES)}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def content(file):
    """What a file holds, read by a program that did not write it, as values to compare."""
    if file.name.endswith(".nii.gz"):
        image = sitk.ReadImage(str(file))
        return image.GetOrigin(), image.GetDirection(), sitk.GetArrayFromImage(image).tobytes()
    if file.suffix == ".h5":
        transform = sitk.ReadTransform(str(file))
        field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, (8, 8, 8), (-9, -9, -9), (2, 2, 2))
        return sitk.GetArrayFromImage(field).tobytes()
    if file.suffix == ".json":
        return untimed(json.loads(file.read_text()))
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            return [untimed(row) for row in csv.DictReader(lines)]
    if file.suffix == ".safetensors":
        return {key: value.numpy().tobytes() for key, value in load_file(file).items()}
    if file.suffix == ".parquet":
        return pytest.importorskip("pandas").read_parquet(file).drop(columns="seconds").to_csv()
    if file.suffix == ".png":
        return imread(file).shape
    text = file.read_text()  # these show times
    return (len(text.splitlines()), text[:40], text[-9:]) if file.suffix in (".html", ".md") else text


def check_same(out, whole, *, all_of_them):
    """Compare the outputs to those of an undisturbed run."""
    found, expected = files_in(out), files_in(whole)
    assert set(found) <= set(expected)
    if all_of_them:
        assert found == expected
        assert not list(out.rglob(".part-*"))
    for name in found:
        assert content(out / name) == content(whole / name), name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command(command, inputs, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    action = begin(command, inputs, whole)
    before = time.monotonic()
    run(action)
    duration = time.monotonic() - before
    random = np.random.default_rng(sorted(COMMANDS).index(command))
    action, done = begin(command, inputs, out), 0
    while done < KILLS:
        share = random.uniform(0.05, 0.95) if done % 2 else random.uniform(0.6, 0.98)  # files come at the end
        (child,) = begun(action)
        child.join(share * duration)
        child.kill()
        if statuses([child]) == [0]:
            check_same(out, whole, all_of_them=True)
            action = begin(command, inputs, out)  # it ended before it was killed: begin anew
            continue
        done += 1
        check_same(out, whole, all_of_them=False)
    run(action)
    check_same(out, whole, all_of_them=True)
