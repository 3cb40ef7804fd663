"""The command line: its help, what it takes, and what it says of what it does not take."""

import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from learnreg.apps import commands
from learnreg.apps.main import application, main
from tests.test_configs import run

HEAVY = {"torch", "monai", "matplotlib", "pytorch_lightning", "SimpleITK", "hydra", "numpy", "scipy", "nibabel"}
EXAMPLE = re.compile(r"^ +(learnreg .*)$", re.M)


def parsed(*words):
    """The function and the arguments that a command line stands for."""
    function, bound, _ = application().parse_args([str(word) for word in words], exit_on_error=False, print_error=False)
    return function, bound.arguments


def examples(name):
    return EXAMPLE.findall(inspect.getdoc(getattr(commands, name)))


def test_help_and_version_load_nothing_heavy():
    """Of every command in one process; a typing error loads nothing either."""
    names = [name for name in commands.__all__ if name != "train"]  # whose help is Hydra's
    code = (
        "import sys; from learnreg.apps.main import main\n"
        f"for words in (['--help'], ['--version'], *([name, '--help'] for name in {names})): main(words)\n"
        "try: main(['register', 'a', '--outptu', 'b'])\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        f"print('loaded', sorted({HEAVY} & set(sys.modules)))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert "learnreg 0." in done.stdout
    assert "Did you mean --output?" in done.stderr


UNNEEDED = {"monai", "pytorch_lightning", "lightning_fabric", "torchmetrics", "hydra", "omegaconf", "matplotlib"}
UNNEEDED |= {"beartype", "torch._dynamo", "sympy", "scipy.optimize", "scipy.ndimage"}  # numba loads scipy.linalg


@pytest.mark.parametrize("options", [["--method", "fast"], [], ["--checkpoint", "hippocampus", "--refine", "2"]])
@pytest.mark.slow
def test_a_registration_loads_what_it_needs(options, tmp_path):
    """Until it draws: a pair of small images takes less time than these packages take to load."""
    rng = np.random.default_rng(0)
    for name in ("fixed", "moving"):
        values = gaussian_filter(rng.random((16, 16, 16)), 2)
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
    files = [str(tmp_path / name) for name in ("fixed.nii.gz", "moving.nii.gz", "out")]
    code = (
        "import sys; from learnreg import reporting; from learnreg.apps.main import main\n"
        "def drawn(*args, **kwargs):\n"
        f"    print('loaded', sorted({UNNEEDED} & set(sys.modules)))\n"
        "    raise RuntimeError('enough')\n"
        "reporting.registration_figure = drawn\n"
        f"main(['register', *{files[:2]}, '-o', {files[2]!r}, '--quiet', *{options}])"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["loaded []"]
    assert (tmp_path / "out" / "transform.h5").exists()


def test_the_help_lists_all_commands(capsys):
    main(["--help"])
    told = capsys.readouterr().out
    for name in commands.__all__:
        summary = inspect.getdoc(getattr(commands, name)).splitlines()[0]
        assert re.search(rf"\b{name} +{re.escape(summary[:40])}", told), name


@pytest.mark.parametrize("name", [name for name in commands.__all__ if name != "train"])
def test_the_help_of_a_command_has_examples_and_every_option(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main([name, "--help"])
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: learnreg {name}")
    assert len(examples(name)) >= 1
    assert all(example in told for example in examples(name))
    for parameter in inspect.signature(getattr(commands, name)).parameters.values():
        label = parameter.name.removesuffix("_format").replace("_", "-")
        assert (f"--{label}" if parameter.kind is parameter.KEYWORD_ONLY else label.upper()) in told
        described = re.search(rf"^ +{parameter.name}: (.*)$", inspect.getdoc(getattr(commands, name)), re.M)[1]
        assert " ".join(described.split())[:40] in told


@pytest.mark.parametrize("example", [line for name in commands.__all__ for line in examples(name)])
def test_examples_are_command_lines(example):
    words = example.split()[1:]
    function, arguments = parsed(*words)
    assert function is getattr(commands, words[0]) or words[-1] == "--help"
    assert arguments or words[0] in ("methods", "doctor") or words[-1] == "--help"


def test_the_help_of_apply_has_the_arrows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main(["apply", "--help"])
    picture = "points   fixed  ---- T ---->  moving         image   moving  ---- T ---->  grid of fixed"
    assert picture in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("register F M -o O", {"fixed": "F", "moving": "M", "output": "O"}),
        ("register -o O --quiet F M", {"fixed": "F", "moving": "M", "quiet": True}),
        ("register F M -oO --fixed-labels=A --landmarks A B", {"fixed_labels": "A", "landmarks": ["A", "B"]}),
        ("register F --landmarks A --fill -1000 -o O M", None),
        ("register F M -o O --fill -1e3 --weight 0.5 --refine 0", {"fill": -1000.0, "weight": 0.5, "refine": 0}),
        ("register F M -o O --trust a --trust b", {"trust": ["a", "b"]}),
        ("batch P -o O --save transform warped --jobs 2", {"save": ["transform", "warped"], "jobs": 2}),
        ("batch P -o O --shard 3/8 --batch 4", {"shard": (3, 8), "batch": 4}),
        ("batch P -o O --on ray --engine a=1 b=2 --quiet", {"engine": ["a=1", "b=2"], "quiet": True}),
        ("bids B O participant --participant-label 01 02", {"level": "participant", "participant_label": ["01", "02"]}),
        ("evaluate D --block 160:200 --shape 64 64 32", {"block": (160, 200), "shape": (64, 64, 32)}),
        ("evaluate D --method a --method b.yaml", {"method": ["a", "b.yaml"]}),
        ("evaluate D --checkpoint a --checkpoint b --spacing 1.5", {"checkpoint": ["a", "b"], "spacing": 1.5}),
        ("apply T1 T2 M -r F -o O --labels", {"inputs": ["T1", "T2", "M"], "reference": "F", "labels": True}),
        ("apply T1 T2 --moving X Y --reference F -o O", {"inputs": ["T1", "T2"], "moving": ["X", "Y"]}),
        ("apply -o O -r F -- -T M", {"inputs": ["-T", "M"]}),
        ("runs a b", {"folders": ["a", "b"]}),
        (
            "train -m --config-dir here a=1 +b=2 --help",
            {"overrides": ("-m", "--config-dir", "here", "a=1", "+b=2", "--help")},
        ),
    ],
)
def test_what_the_command_line_takes(line, expected):
    if expected is None:  # an option that takes several values takes all up to the next option, as before
        expected = {"fixed": "F", "moving": "M", "landmarks": ["A"], "fill": -1000.0}
    function, arguments = parsed(*line.split())
    assert function is getattr(commands, line.split()[0])
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Name a command"),
        ("regster F M", 'Did you mean "register"?'),
        ("register F -o O", "needs MOVING"),
        ("register F M", "needs --output"),
        ("register F M -o", "-o needs a value"),
        ("register F M X -o O", "takes no 'X'"),
        ("register F M -o O --refin 3", "Did you mean --refine?"),
        ("register F M -o O --refine 1.5", "--refine: expected a number of at least 0, got '1.5'"),
        ("register F M -o O --threads 0", "--threads: expected a number of at least 1, got '0'"),
        ("register F M -o O --fill much", "--fill"),
        ("register F M -o O -o P", "-o specified multiple times"),
        ("register F M -o O --no-inverse", "--no-inverse"),
        ("register F M -o O --landmarks", "--landmarks needs a value"),
        ("batch P -o O --shard 9/8", "expected I/N with I from 1 to N"),
        ("batch P -o O --save all", 'Choose from: "transform"'),
        ("batch P -o O --on sge", 'Choose from: "slurm", "ray"'),
        ("bids B O group2", '"group"'),
        ("evaluate D --block 5:2", "expected A:B with A < B"),
        ("evaluate D --shape 64 64 x", "--shape: expected a number"),
        ("evaluate D --spacing -1", "expected a length in mm above 0"),
        ("apply -o O", "needs INPUTS"),
        ("convert A B -o O", "takes no 'B'"),
        ("apply T --interpolation cubic -o O", 'Choose from: "linear", "nearest"'),
    ],
)
def test_a_bad_command_line_is_one_line(line, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate(("fixed", "t1", "t2")):
        values = np.random.default_rng(seed).random((9, 10, 11)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"{name}.nii.gz"))
    sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 0.0, -2.0)), str(tmp_path / "shift.tfm"))
    return tmp_path


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_several_images_are_resampled_into_a_folder(images, capsys):
    common = [str(images / "shift.tfm"), "-r", str(images / "fixed.nii.gz")]
    main(["apply", *common, "--moving", str(images / "t1.nii.gz"), "-o", str(images / "one.nii.gz")])
    both = ["--moving", str(images / "t1.nii.gz"), str(images / "t2.nii.gz"), "-o", str(images / "out")]
    main(["apply", *common, *both])
    assert sorted(file.name for file in (images / "out").iterdir()) == ["t1.nii.gz", "t2.nii.gz"]
    fixed, transform = sitk.ReadImage(str(images / "fixed.nii.gz")), sitk.ReadTransform(str(images / "shift.tfm"))
    for name in ("t1", "t2"):
        theirs = sitk.Resample(sitk.ReadImage(str(images / f"{name}.nii.gz")), fixed, transform, sitk.sitkLinear, 0.0)
        np.testing.assert_allclose(read(images / "out" / f"{name}.nii.gz"), sitk.GetArrayFromImage(theirs), atol=1e-5)
    np.testing.assert_array_equal(read(images / "one.nii.gz"), read(images / "out" / "t1.nii.gz"))
    with pytest.raises(SystemExit, match="2"):
        main(["apply", *common, *both])
    assert "t1.nii.gz exists already" in capsys.readouterr().err


def test_of_several_images_none_appears_if_one_is_damaged(images, capsys):
    (images / "t2.nii.gz").write_bytes((images / "t2.nii.gz").read_bytes()[:200])
    both = ["--moving", str(images / "t1.nii.gz"), str(images / "t2.nii.gz"), "-o", str(images / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(["apply", str(images / "shift.tfm"), "-r", str(images / "fixed.nii.gz"), *both])
    assert "t2.nii.gz is damaged" in capsys.readouterr().err
    assert not (images / "out").exists()


def test_a_command_is_a_function(images, capsys):
    commands.apply(
        [images / "shift.tfm"],
        moving=[images / "t1.nii.gz"],
        reference=images / "fixed.nii.gz",
        output=images / "a.nii.gz",
    )
    commands.invert([images / "shift.tfm"], output=images / "back.tfm")
    assert sitk.ReadTransform(str(images / "back.tfm")).TransformPoint((0.0, 0.0, 0.0)) == pytest.approx((-1, 0, 2))
    assert Path(images / "a.nii.gz").exists()
    assert "Wrote" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists already"):
        commands.invert([images / "shift.tfm"], output=images / "back.tfm")


def test_debug_belongs_to_every_command(images):
    shutil.rmtree(images, ignore_errors=True)
    for words in (["--debug", "check", str(images)], ["check", str(images), "--debug"]):
        with pytest.raises(FileNotFoundError):
            main(words)


def test_the_formats_of_the_command_line_are_those_of_the_library():
    from typing import get_args

    from learnreg.apps.commands.options import FormatName
    from learnreg.transforms.files import FORMATS

    assert get_args(FormatName) == FORMATS
