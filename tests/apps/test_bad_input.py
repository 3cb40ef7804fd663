"""The table of bad input: a kind of file, a fault and a command in each row.

A row ends well, or by one line on the standard error stream that names the file and the remedy and exit status 2. Then
nothing is left behind. ``batch`` and ``check`` go on after a bad file: they end with status 1, and name it in what
they write.

By default a sample of the rows is run, with each fault at least once; ``LEARNREG_ROWS=all`` runs all of them.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from learnreg.apps.jobs import read_jobs
from learnreg.apps.main import main
from learnreg.data.datamodule import RegistrationData
from learnreg.data.preprocessing import ModelSpace
from learnreg.errors import InputError
from tests.apps import faults

REMEDY = re.compile(
    r"\b(add|ask|change|check|choose|convert|copy|correct|crop|delete|did you mean|expected|export|give|install|leave|"
    r"list|make|must be|needs|name|number|read|reads|remove|rename|replace|resample|set|split|start|take|train again|"
    r"trust|use|write)\b",
    re.IGNORECASE,
)

ALL = os.environ.get("LEARNREG_ROWS") == "all"
EVERY = 4


def rows(commands, faults):
    """All rows, or every fourth of a table in which the first command changes from fault to fault."""
    step = 1 if ALL else min(EVERY, len(commands))
    pairs = [(c, f) for i, f in enumerate(faults) for k, c in enumerate(commands) if (i + k) % step == 0]
    assert {fault for _, fault in pairs} == set(faults)
    return pytest.mark.parametrize(("command", "fault"), pairs)


def words(text):
    return text.split()


IMAGES = words(
    """
    truncated.nii empty.nii truncated.nii.gz empty.nii.gz truncated.mha empty.mha truncated.nrrd empty.nrrd
    truncated-header.nii.gz mislabelled-nii-as.mha mislabelled-mha-as.nii.gz mislabelled-nrrd-as.nii text.nii text.nii.gz
    text.png text.txt text.mha text.mgz folder missing complex.nii color.png color.nii 5-D.nii 4-D.nii.gz nan.nii.gz nan.mha
    infinite.nii.gz zero-spacing.nii zero-sform.nii zero-spacing.mha zero-spacing.nrrd nan-spacing.nii nan-sform.nii
    nan-spacing.mha nan-spacing.nrrd infinite-spacing.nii infinite-sform.nii infinite-spacing.mha infinite-spacing.nrrd
    nan-origin.mha singular.mha singular.nrrd sheared.nii singular.nii
    """
)
ODD_IMAGES = words(
    """
    constant zeros one-voxel one-column two-voxels partly-nan partly-nan.mha half boolean huge-values tiny-spacing far-away
    flipped negative-pixdim negative-spacing.mha
    """
)
SEGMENTATIONS = words(
    """
    fractions nan-labels no-common no-label other-shape other-place other-spacing flat-labels truncated-labels missing-labels
    vectors text-labels empty-mask nan-mask negative-labels one-voxel-mask
    """
)
LANDMARKS = words(
    """
    empty header-only text blank column-missing value-missing no-header all-nan infinite fewer outside other-names broken.txt
    broken.fcsv broken.mrk.json binary missing folder
    """
)
TRANSFORMS = words(
    """
    2-D.tfm truncated.tfm empty.tfm text.tfm 2-D.h5 truncated.h5 empty.h5 text.h5 2-D.mat truncated.mat empty.mat text.mat
    singular.tfm nan.tfm 2-D_field nan_field an_image a_table a_checkpoint missing folder
    """
)
METHODS = words(
    """
    not-yaml empty list text binary unknown-key unknown-class wrong-type text-number negative-iterations huge-iterations
    zero-factor nan-factor unequal no-stages another-class os-system nested-os-system builtins args environment resolver hydra
    unknown-preset object duplicate bomb missing typo folder
    """
)
MODELS = words(
    """
    truncated empty text hostile other nan format target resolver huge wide no-network space large-space cut.safetensors
    size.safetensors foreign.safetensors text.safetensors missing folder an_image
    """
)
KINDS = {
    "images": IMAGES,
    "odd_images": ODD_IMAGES,
    "segmentations": SEGMENTATIONS,
    "landmarks": LANDMARKS,
    "transforms": TRANSFORMS,
    "methods": METHODS,
    "models": MODELS,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All faulty files, by kind and fault; those of a kind lie in a folder with a good pair."""
    files = {}
    good = tmp_path_factory.mktemp("bad") / "good"
    good.mkdir()
    faults.good_files(good)
    for kind, names in KINDS.items():
        folder = good.parent / kind
        shutil.copytree(good, folder)
        files[kind] = {name.replace(" ", "_"): file for name, file in getattr(faults, kind)(folder).items()}
        assert list(files[kind]) == names
    files["good"] = {file.name: file for file in good.iterdir()}
    before = listing(good.parent)
    yield files
    assert listing(good.parent) == before


@pytest.fixture
def good(made):
    return lambda name: str(made["good"][name])


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def listing(folder):
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*"))


def ended(arguments):
    """The exit status of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit:
        return exit.code or 0
    return 0


def refused(capfd, arguments, *names):
    """Run a command that must end by one line with these names, and leave nothing behind; return the line."""
    before = listing(".")
    capfd.readouterr()
    status = ended(arguments)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2, f"status {status}, {out[-500:]} {err[-500:]}"
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for name in names:
        assert str(name) in lines[0], lines[0]
    told = lines[0]
    for name in names:
        told = told.replace(str(name), "")
    assert REMEDY.search(told), lines[0]
    assert "Traceback" not in out
    assert listing(".") == before
    return lines[0]


def table(file, *rows):
    Path(file).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return file


def finite(*files):
    for file in files:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert np.isfinite(values).all(), file


def register(fixed, moving, *more, method):
    return ["register", fixed, moving, "-o", "out", "--method", method, "--quiet", *more]


def of_images(command, image, good):
    """The arguments of a command that reads an image."""
    fixed, moving, shift, tiny = good("fixed.nii.gz"), good("moving.nii.gz"), good("shift.tfm"), good("tiny.yaml")
    labels = good("fixed_labels.nii.gz")
    if command == "batch":
        table("pairs.csv", ("fixed", "moving"), (fixed, image), (fixed, moving))
    elif command == "evaluate":
        table(
            "data.csv",
            ("fixed", "moving", "fixed_labels", "moving_labels"),
            (fixed, image, labels, good("moving_labels.nii.gz")),
        )
    else:
        table("data.csv", ("image",), (fixed,), (image,))
    return {
        "register fixed": register(image, moving, method=tiny),
        "register moving": register(fixed, image, method=tiny),
        "apply moving": ["apply", shift, image, "-r", fixed, "-o", "out.nii.gz"],
        "apply reference": ["apply", shift, moving, "-r", image, "-o", "out.nii.gz"],
        "apply labels": ["apply", shift, image, "-r", fixed, "-o", "out.nii.gz", "--labels"],
        "apply points": ["apply", shift, "--points", good("fixed.csv"), "-r", image, "-o", "out.csv"],
        "jacobian": ["jacobian", shift, "-r", image, "-o", "out.nii.gz"],
        "invert": ["invert", good("field.nii.gz"), "-r", image, "-o", "out.nii.gz"],
        "compose": ["compose", shift, shift, "-r", image, "-o", "out.nii.gz"],
        "convert": ["convert", shift, "-r", image, "-o", "out.nii.gz"],
        "batch": ["batch", "pairs.csv", "-o", "out", "--method", tiny, "--quiet"],
        "evaluate": ["evaluate", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
        "check": ["check", "data.csv", "--quiet"],
        "template": ["template", "data.csv", "-o", "out", "--method", tiny, "--rounds", "1", "--quiet"],
    }[command]


ONE_LINE = (
    "register fixed",
    "register moving",
    "apply moving",
    "apply reference",
    "apply labels",
    "apply points",
    "jacobian",
    "invert",
    "compose",
    "convert",
    "evaluate",
    "template",
)
RIGHT = {  # what is right where a command does not need what is wrong, or has a use for it
    ("4-D.nii.gz", "template"),
}


@rows(ONE_LINE, IMAGES)
def test_images(command, fault, made, good, capfd):
    image = made["images"][fault]
    arguments = of_images(command, image, good)
    if (fault, command) in RIGHT:
        assert ended(arguments) == 0
        return
    refused(capfd, arguments, image)


@pytest.mark.parametrize("fault", IMAGES if ALL else IMAGES[::EVERY])
def test_images_of_a_batch(fault, made, good, capfd):
    image = made["images"][fault]
    if fault == "missing":
        refused(capfd, of_images("batch", image, good), image)
        return
    assert ended(of_images("batch", image, good)) == 1
    _, err = capfd.readouterr()
    assert err.splitlines() == [f"1 of 2 pairs failed; see {Path('out/failed')}, and --retry"]
    (failed,) = Path("out/failed").iterdir()
    reason = json.loads(failed.read_text())["reason"]
    assert str(image) in reason
    assert REMEDY.search(reason.replace(str(image), "")), reason
    assert listing("out") == sorted(
        [
            "failed",
            f"failed/{failed.name}",
            "index.html",
            "results.csv",
            *done("out", "fixed__moving", "transform.h5 metrics.json report.html"),
        ]
    )


def done(folder, name, files):
    return [name, *(f"{name}/{file}" for file in files.split())]


@pytest.mark.parametrize("fault", IMAGES if ALL else IMAGES[::EVERY])
def test_images_of_a_check(fault, made, good, capfd):
    image = made["images"][fault]
    arguments = of_images("check", image, good)
    if fault == "missing":
        refused(capfd, arguments, image)
        return
    if fault == "4-D.nii.gz":  # each time point is an image
        assert ended(arguments) in (0, 1)
        return
    assert ended(arguments) == 1
    out, err = capfd.readouterr()
    assert not err
    assert len([line for line in out.splitlines() if line.startswith(f"error: {image}: ")]) == 1, out


def labels_of(image):
    """A segmentation on the grid of an image."""
    stored = sitk.ReadImage(str(image))
    values = np.nan_to_num(sitk.GetArrayFromImage(stored))
    labels = sitk.GetImageFromArray((values > np.median(values)).astype(np.uint8))
    labels.CopyInformation(stored)
    sitk.WriteImage(labels, "labels.nrrd")
    return Path("labels.nrrd").absolute()


NOTHING = ("constant", "zeros", "one-voxel", "one-column")  # to register
REFUSED = {
    *(
        (fault, command)
        for fault in NOTHING
        for command in ("register fixed", "register moving", "evaluate", "template")
    ),
    *(("one-voxel", command) for command in ("invert", "compose", "convert")),
    ("far-away", "template"),
}


@rows([c for c in ONE_LINE if c not in ("apply labels", "apply points")], ODD_IMAGES)
def test_odd_images(command, fault, made, good, capfd):
    image = made["odd_images"][fault]
    arguments = of_images(command, image, good)
    if command == "evaluate":
        head = ("fixed", "moving", "fixed_labels", "moving_labels")
        table("data.csv", head, (good("fixed.nii.gz"), image, good("fixed_labels.nii.gz"), labels_of(image)))
    if (fault, command) in REFUSED:
        named = {"invert": "out.nii.gz", "compose": "out.nii.gz", "convert": "out.nii.gz", "template": ""}
        refused(capfd, arguments, named.get(command, image))
        return
    status = ended(arguments)
    _, err = capfd.readouterr()
    assert status == 0, err
    assert all(line.startswith("warning: ") for line in err.splitlines()), err
    if command.startswith("register"):
        finite("out/warped.nii.gz")
    elif Path("out.nii.gz").exists():
        finite("out.nii.gz")


def of_labels(command, labels, good):
    """The arguments of a command that reads the segmentation of an image."""
    fixed, moving, shift, tiny = good("fixed.nii.gz"), good("moving.nii.gz"), good("shift.tfm"), good("tiny.yaml")
    theirs = good("moving_labels.nii.gz")
    pair = ("fixed", "moving", "fixed_labels", "moving_labels")
    if command in ("batch", "evaluate"):
        table("data.csv", pair, (fixed, moving, labels, theirs))
    elif command == "batch mask":
        table("data.csv", ("fixed", "moving", "fixed_mask"), (fixed, moving, labels))
    else:
        table("data.csv", ("image", "labels"), (fixed, labels), (moving, theirs))
    both = "--fixed-labels", labels, "--moving-labels", theirs
    return {
        "register": register(fixed, moving, *both, method=tiny),
        "register moving": register(moving, fixed, "--fixed-labels", theirs, "--moving-labels", labels, method=tiny),
        "register mask": register(fixed, moving, "--fixed-mask", labels, method=tiny),
        "apply": ["apply", shift, labels, "-r", fixed, "-o", "out.nii.gz", "--labels"],
        "batch": ["batch", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
        "batch mask": ["batch", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
        "evaluate": ["evaluate", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
        "check": ["check", "data.csv", "--quiet"],
        "template": ["template", "data.csv", "-o", "out", "--method", tiny, "--rounds", "1", "--quiet"],
    }[command]


def failed(capfd, name):
    """The reason of the only pair of a batch, which failed: it names a file and the remedy."""
    _, err = capfd.readouterr()
    assert err.splitlines() == [f"1 of 1 pairs failed; see {Path('out/failed')}, and --retry"]
    (record,) = Path("out/failed").iterdir()
    reason = json.loads(record.read_text())["reason"]
    assert str(name) in reason
    assert REMEDY.search(reason.replace(str(name), "")), reason
    assert listing("out") == sorted(["failed", f"failed/{record.name}", "index.html", "results.csv"])
    return reason


def ends_as(command, arguments, name, capfd, *, right):
    """Run a row: it ends well, or names a file in the way of its command."""
    status = 0 if right else {"batch": 1, "batch mask": 1, "check": 1}.get(command, 2)
    if status == 2 or Path(name).name.startswith("missing"):
        refused(capfd, arguments, name)
        return
    assert ended(arguments) == status
    if status == 0:
        out, err = capfd.readouterr()
        assert all(line.startswith("warning: ") for line in err.splitlines()), err
    elif command == "check":
        out, err = capfd.readouterr()
        assert not err
        assert sum(line.startswith("error: ") and str(name) in line for line in out.splitlines()) == 1, out
    else:
        failed(capfd, name)


GRIDS = ("other-shape", "other-place", "other-spacing", "flat-labels")
UNREADABLE = ("truncated-labels", "missing-labels", "vectors", "text-labels")
APART = ("no-common", "no-label", "empty-mask", "negative-labels")
WRONG_LABELS = {
    "register": ("fractions", "nan-labels", "nan-mask", *APART, *GRIDS, *UNREADABLE),
    "register mask": ("nan-labels", "no-label", "empty-mask", "nan-mask", "one-voxel-mask", *GRIDS, *UNREADABLE),
    "apply": ("fractions", "nan-labels", "nan-mask", "flat-labels", *UNREADABLE),
    "check": ("fractions", "nan-labels", "nan-mask", "negative-labels", *GRIDS, *UNREADABLE),
    "template": ("fractions", "nan-labels", "nan-mask", *GRIDS, *UNREADABLE),
}
WRONG_LABELS |= dict.fromkeys(("register moving", "batch", "evaluate"), WRONG_LABELS["register"])
WRONG_LABELS |= {"batch mask": WRONG_LABELS["register mask"]}


@rows(list(WRONG_LABELS), SEGMENTATIONS)
def test_segmentations(command, fault, made, good, capfd):
    labels = made["segmentations"][fault]
    by_image = (command in ("batch", "evaluate") and fault in APART) or fault == "one-voxel-mask"
    name = good("fixed.nii.gz") if by_image else labels
    if (command, fault) == ("batch mask", "one-voxel-mask"):
        name = "the fixed image"  # its file is in the record
    ends_as(command, of_labels(command, labels, good), name, capfd, right=fault not in WRONG_LABELS[command])


TABLE_FAULTS = {  # what the rows of a pair of images become, and what the one line tells
    "column-missing": (lambda t: t.replace("moving", "other", 1), "column"),
    "file-missing": (lambda t: t.replace("moving.nii.gz", "gone.nii.gz"), "gone.nii.gz"),
    "duplicate-header": (
        lambda t: t.replace("fixed,moving", "fixed,moving,moving").replace(".gz\n", ".gz,x\n"),
        "two columns",
    ),
    "semicolons": (lambda t: t.replace(",", ";"), "';'"),
    "tabs": (lambda t: t.replace(",", "\t"), r"'\t'"),
    "long-row": (lambda t: t.replace(".gz\n", ".gz,x\n"), "row 1 has more values"),
    "header-only": (lambda t: t.splitlines()[0] + "\n", "no rows"),
    "empty": (lambda t: "", "no rows"),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
@pytest.mark.parametrize("command", ["batch", "evaluate", "check", "train"])
def test_tables(command, fault, good, capfd):
    change, told = TABLE_FAULTS[fault]
    file = table("data.csv", ("fixed", "moving"), (good("fixed.nii.gz"), good("moving.nii.gz")))
    Path(file).write_text(change(Path(file).read_text()))
    if command == "train":
        with pytest.raises(InputError, match=re.escape(told)) as error:
            RegistrationData(file, ModelSpace(shape=[16, 16, 16]), train=[0, 1], validation=[0, 1]).setup()
        assert file in str(error.value)
        return
    more = {"batch": ["-o", "out"], "evaluate": ["-o", "out"], "check": []}[command]
    line = refused(capfd, [command, file, *more, "--quiet"], file)
    assert told in line or fault == "column-missing"


POINTS_FAULTS = {
    "column-missing": "x,y\n1,2\n",
    "duplicate-header": "x,y,z,x\n1,2,3,4\n",
    "semicolons": "x;y;z\n1;2;3\n",
    "tabs": "x\ty\tz\n1\t2\t3\n",
    "empty": "",
}


@pytest.mark.parametrize("fault", POINTS_FAULTS)
def test_tables_of_points(fault, good, capfd):
    Path("points.csv").write_text(POINTS_FAULTS[fault])
    refused(capfd, ["apply", good("shift.tfm"), "--points", "points.csv", "-o", "out.csv"], "points.csv")


def test_a_byte_order_mark_is_no_part_of_a_name(good):
    Path("points.csv").write_text("x,y,z\n1,2,3\n", encoding="utf-8-sig")
    assert ended(["apply", good("shift.tfm"), "--points", "points.csv", "-o", "out.csv"]) == 0
    Path("data.csv").write_text(f"fixed,moving\n{good('fixed.nii.gz')},{good('moving.nii.gz')}\n", encoding="utf-8-sig")
    assert read_jobs("data.csv")[0].name == "fixed__moving"


ALONE = ("empty", "header-only", "text", "blank", "column-missing", "value-missing", "no-header", "infinite")
ALONE += ("broken.txt", "broken.fcsv", "broken.mrk.json", "binary", "missing", "folder")
WRONG_LANDMARKS = {
    "register": (*ALONE, "all-nan", "fewer", "other-names"),
    "register pairs": LANDMARKS,
    "apply": (*ALONE, "all-nan"),
    "check": ALONE,
    "batch": (*ALONE, "all-nan", "fewer", "other-names"),
}


@rows(list(WRONG_LANDMARKS), LANDMARKS)
def test_landmarks(command, fault, made, good, capfd):
    points = made["landmarks"][fault]
    fixed, moving, shift, tiny = good("fixed.nii.gz"), good("moving.nii.gz"), good("shift.tfm"), good("tiny.yaml")
    theirs = good("moving.csv")
    if command == "batch":
        head = ("fixed", "moving", "fixed_landmarks", "moving_landmarks")
        table("data.csv", head, (fixed, moving, points, theirs))
    else:
        table("data.csv", ("image", "landmarks"), (fixed, points), (moving, theirs))
    arguments = {
        "register": register(fixed, moving, "--landmarks", points, theirs, method=tiny),
        "register pairs": register(fixed, moving, "--landmarks", points, method=tiny),
        "apply": ["apply", shift, "--points", points, "-r", fixed, "-o", "out.csv"],
        "check": ["check", "data.csv", "--quiet"],
        "batch": ["batch", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
    }[command]
    of_pair = command == "batch" and fault in ("all-nan", "fewer", "other-names")
    name = fixed if of_pair else points
    ends_as(command, arguments, name, capfd, right=fault not in WRONG_LANDMARKS[command])


@rows(["register", "apply", "apply inverse", "points", "compose", "invert", "convert", "jacobian", "batch"], TRANSFORMS)
def test_transforms(command, fault, made, good, capfd):
    transform = made["transforms"][fault]
    fixed, moving, shift, tiny = good("fixed.nii.gz"), good("moving.nii.gz"), good("shift.tfm"), good("tiny.yaml")
    table("data.csv", ("fixed", "moving", "initial"), (fixed, moving, transform))
    arguments = {
        "register": register(fixed, moving, "--initial", transform, method=tiny),
        "apply": ["apply", transform, moving, "-r", fixed, "-o", "out.nii.gz"],
        "apply inverse": ["apply", transform, moving, "-r", fixed, "-o", "out.nii.gz", "--inverse"],
        "points": ["apply", transform, "--points", good("fixed.csv"), "-o", "out.csv"],
        "compose": ["compose", shift, transform, "-o", "out.h5"],
        "invert": ["invert", transform, "-r", fixed, "-o", "out.h5"],
        "convert": ["convert", transform, "-r", fixed, "-o", "out.nii.gz"],
        "jacobian": ["jacobian", transform, "-r", fixed, "-o", "out.nii.gz"],
        "batch": ["batch", "data.csv", "-o", "out", "--method", tiny, "--quiet"],
    }[command]
    by_points = command == "points" and fault.startswith("2-D")  # the points are 3-D
    ends_as(command, arguments, good("fixed.csv") if by_points else transform, capfd, right=False)


@rows(["register", "batch", "evaluate", "template", "bids"], METHODS)
def test_methods(command, fault, made, good, capfd):
    method = made["methods"][fault]
    refused(capfd, with_method(command, ["--method", method], good), method.name)
    assert not Path("hacked").exists()


def with_method(command, chosen, good):
    fixed, moving = good("fixed.nii.gz"), good("moving.nii.gz")
    head = ("fixed", "moving", "fixed_labels", "moving_labels")
    if command == "template":
        table("data.csv", ("image",), (fixed,), (moving,))
    else:
        table("data.csv", head, (fixed, moving, good("fixed_labels.nii.gz"), good("moving_labels.nii.gz")))
    if command == "bids":
        Path("bids/sub-01/anat").mkdir(parents=True)
        shutil.copy(moving, "bids/sub-01/anat/sub-01_T1w.nii.gz")
    return {
        "register": ["register", fixed, moving, "-o", "out", "--quiet", *chosen],
        "batch": ["batch", "data.csv", "-o", "out", "--quiet", *chosen],
        "evaluate": ["evaluate", "data.csv", "-o", "out", "--quiet", *chosen],
        "template": ["template", "data.csv", "-o", "out", "--quiet", *chosen],
        "bids": ["bids", "bids", "out", "participant", "--to", fixed, "--quiet", *chosen],
        "export": ["export", chosen[-1], "-o", "out.safetensors"],
    }[command]


@rows(["register", "batch", "evaluate", "bids", "export"], MODELS)
def test_models(command, fault, made, good, capfd):
    model = made["models"][fault]
    refused(capfd, with_method(command, ["--checkpoint", model], good), model.name)
    assert not Path("hacked").exists()
