"""Saved transforms: applied, composed, inverted and converted as SimpleITK does."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.apps.apply import Resampling, read_chain, resample
from learnreg.apps.register import set_device
from learnreg.apps.transforms import convert
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.io import read_image, write_image
from learnreg.transforms import Affine, Displacement, Inverse, read_transform, write_transform
from tests.apps.test_command_line import call, fails
from tests.conftest import blob_image, make_grid

POINTS = [(1.0, 2.0, -1.0), (-3.0, 4.0, 2.0), (0.5, -4.0, 3.0)]
pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path):
    """A pair on grids of different orientation, a field on the fixed grid, and an affine map."""
    fixed = blob_image(make_grid("RAS", (24, 26, 30), (1.2, 1.2, 1.5), torch.float32))
    moving = blob_image(make_grid("oblique", (30, 32, 28), (1.3, 1.1, 1.5), torch.float32), (1.0, -1.0, 0.5))
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image.data[0] * 800 + 100, image.grid, tmp_path / f"{name}.nii.gz")
        write_image(image.labels[0].to(torch.int16), image.grid, tmp_path / f"{name}_labels.nii.gz")
    field = 1.5 * torch.sin(fixed.grid.points / 6.0).roll(1, -1).movedim(-1, 1)
    write_transform(Displacement(field, fixed.grid), fixed.grid, tmp_path / "field.nii.gz")
    matrix = torch.tensor([[1.05, 0.05, 0, 0.4], [-0.05, 1, 0, 0.2], [0, 0.05, 0.95, -0.3], [0, 0, 0, 1]])
    write_transform(Affine(matrix), fixed.grid, tmp_path / "affine.tfm")
    lines = [f"{x},{y},{z},p{k}" for k, (x, y, z) in enumerate(POINTS)]
    (tmp_path / "points.csv").write_text("\n".join(["x,y,z,name", *lines]) + "\n")
    return tmp_path


def theirs(files):
    """The field first, then the affine map; ITK applies the last one first."""
    field = sitk.ReadImage(str(files / "field.nii.gz"), sitk.sitkVectorFloat64)
    return sitk.CompositeTransform(
        [sitk.ReadTransform(str(files / "affine.tfm")), sitk.DisplacementFieldTransform(field)]
    )


def test_several_transforms_are_applied_as_by_itk(files):
    given = (files / "field.nii.gz", files / "affine.tfm", files / "moving.nii.gz")
    call("apply", *given, "-r", files / "fixed.nii.gz", "-o", files / "out.nii.gz")
    fixed, moving = (sitk.ReadImage(str(files / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("fixed", "moving"))
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, theirs(files), sitk.sitkLinear, 0.0))
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "out.nii.gz")))
    assert np.abs(found - expected)[2:-2, 2:-2, 2:-2].mean() < 0.01 * expected.std()


def read_points(file):
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == ["x", "y", "z", "name"]
    assert [row[3] for row in rows[1:]] == ["p0", "p1", "p2"]
    return np.array([[float(value) for value in row[:3]] for row in rows[1:]])


def test_points_are_mapped_as_by_itk_and_back(files):
    given = (files / "field.nii.gz", files / "affine.tfm")
    call("apply", *given, "--points", files / "points.csv", "-o", files / "mapped.csv")
    expected = [theirs(files).TransformPoint(point) for point in POINTS]
    np.testing.assert_allclose(read_points(files / "mapped.csv"), expected, atol=1e-4)
    call("apply", *given, "--inverse", "--points", files / "mapped.csv", "-o", files / "back.csv")
    np.testing.assert_allclose(read_points(files / "back.csv"), POINTS, atol=1e-3)


def test_points_in_voxels_need_their_image(files, capsys):
    (files / "voxels.csv").write_text("i,j,k\n3,4,5\n")
    told = fails(capsys, "apply", files / "affine.tfm", "--points", files / "voxels.csv", "-o", files / "q.csv")
    assert "voxels" in told
    common = ("apply", files / "affine.tfm", "--points", files / "voxels.csv", "-r", files / "fixed.nii.gz")
    call(*common, "-o", files / "q.csv")
    image = sitk.ReadImage(str(files / "fixed.nii.gz"))
    affine = sitk.ReadTransform(str(files / "affine.tfm"))
    expected = affine.TransformPoint(image.TransformContinuousIndexToPhysicalPoint([3.0, 4.0, 5.0]))
    found = [float(value) for value in (files / "q.csv").read_text().splitlines()[1].split(",")]
    assert found == pytest.approx(expected, abs=1e-3)


def test_composed_and_converted_files_map_the_same_points(files):
    both = (files / "field.nii.gz", files / "affine.tfm")
    call("compose", *both, "-o", files / "both.h5")
    call("convert", files / "both.h5", "-o", files / "both.nii.gz")
    call("convert", files / "affine.tfm", "-o", files / "affine.mat")
    image = sitk.ReadImage(str(files / "both.nii.gz"), sitk.sitkVectorFloat64)
    for point in POINTS:
        expected = theirs(files).TransformPoint(point)
        assert sitk.ReadTransform(str(files / "both.h5")).TransformPoint(point) == pytest.approx(expected, abs=1e-3)
        again = sitk.DisplacementFieldTransform(sitk.Image(image)).TransformPoint(point)
        assert again == pytest.approx(expected, abs=0.02)  # of a field, linear between its samples
        one = sitk.ReadTransform(str(files / "affine.mat")).TransformPoint(point)
        assert one == pytest.approx(sitk.ReadTransform(str(files / "affine.tfm")).TransformPoint(point), abs=1e-4)


def test_an_inverse_undoes_and_tells_its_error(files, capsys):
    both = (files / "field.nii.gz", files / "affine.tfm")
    call("invert", *both, "-r", files / "moving.nii.gz", "-o", files / "inverse.h5")
    assert "the inverse is off by 0.0" in capsys.readouterr().out
    inverse = sitk.ReadTransform(str(files / "inverse.h5"))
    for point in POINTS:
        assert inverse.TransformPoint(theirs(files).TransformPoint(point)) == pytest.approx(point, abs=0.05)
    assert "--reference" in fails(capsys, "invert", *both, "-o", files / "other.h5")
    call("invert", files / "affine.tfm", "-o", files / "linear.mat")
    affine, back = (sitk.ReadTransform(str(files / name)) for name in ("affine.tfm", "linear.mat"))
    assert back.TransformPoint(affine.TransformPoint(POINTS[0])) == pytest.approx(POINTS[0], abs=1e-3)


def test_an_expansion_is_inverted():
    """The plain fixed point diverges where a displacement changes by more than the distance."""
    grid = Grid.regular((9, 9, 9), 2.0)
    threefold = Displacement(2.0 * grid.points.movedim(-1, 1), grid)
    points = 3.0 * torch.tensor([[[1.0, -2.0, 3.0], [4.0, 0.5, -3.0]]])
    assert torch.allclose(Inverse(threefold)(points), points / 3, atol=1e-3)


def test_the_jacobian_of_an_affine_map_is_its_determinant(files, capsys):
    common = ("jacobian", files / "affine.tfm", "-r", files / "fixed.nii.gz")
    call(*common, "-o", files / "plain.nii.gz")
    assert "folding 0.000 %" in capsys.readouterr().out
    call(*common, "-o", files / "log.nii.gz", "--log", "--inverse")
    expected = float(np.linalg.det(read_transform(files / "affine.tfm").matrix[0, :3, :3].numpy()))
    plain, log = (read_image(files / name).data for name in ("plain.nii.gz", "log.nii.gz"))
    assert torch.allclose(plain, torch.tensor(expected), atol=1e-3)
    assert torch.allclose(log, torch.tensor(-np.log(expected), dtype=torch.float32), atol=1e-3)


def test_a_registration_writes_its_inverse(files):
    pair = (files / "fixed.nii.gz", files / "moving.nii.gz")
    call("register", *pair, "-o", files / "out", "--method", "fast", "--inverse", "--device", "auto", "--quiet")
    residual = json.loads((files / "out" / "metrics.json").read_text())["inverse_residual_mm"]
    assert residual["mean"] < 0.02
    forward, inverse = (sitk.ReadTransform(str(files / "out" / f"{name}.h5")) for name in ("transform", "inverse"))
    for point in POINTS:
        assert inverse.TransformPoint(forward.TransformPoint(point)) == pytest.approx(point, abs=0.1)
    call("register", *pair, "-o", files / "out", "--method", "rigid", "--quiet", "--overwrite")
    assert not (files / "out" / "inverse.h5").exists()  # of another transform


def test_auto_is_a_device_that_is_there():
    device = set_device("auto")
    assert torch.zeros(1, device=device).device.type == device


def test_a_segmentation_is_not_interpolated_in_silence(files):
    common = (files / "affine.tfm", files / "moving_labels.nii.gz", "-r", files / "fixed.nii.gz")
    with pytest.warns(UserWarning, match="looks like a segmentation"):
        call("apply", *common, "-o", files / "a.nii.gz")
    call("apply", *common, "-o", files / "b.nii.gz", "--labels", "--interpolation", "linear")
    call("apply", *common, "-o", files / "c.nii.gz", "--interpolation", "nearest")
    for name in ("b", "c"):
        assert set(read_image(files / f"{name}.nii.gz").data.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_images_of_one_run_go_through_a_transform_that_is_read_and_inverted_once(files, monkeypatch):
    """Those of FSL depend on the moving image, and are read for each of them."""
    reads, inverted = [], []
    inverse_call = Inverse.__call__
    monkeypatch.setattr(
        "learnreg.apps.apply.read_transform", lambda *a, **k: reads.append(a) or read_transform(*a, **k)
    )
    monkeypatch.setattr(Inverse, "__call__", lambda self, points: inverted.append(1) or inverse_call(self, points))
    fixed, moving, part = (str(files / f"{name}.nii.gz") for name in ("fixed", "moving", "part"))
    sitk.WriteImage(sitk.ReadImage(fixed)[2:, 3:, 4:], part)
    convert([str(files / "affine.tfm")], str(files / "t.mat"), reference=fixed, moving=moving, to_format="fsl")
    for name, kind, count in (("affine.tfm", None, 1), ("field.nii.gz", None, 1), ("t.mat", "fsl", 2)):
        reads.clear()
        inverted.clear()
        how = Resampling(inverse=True, format=kind)
        resample([files / name], [fixed, part], how, reference=moving, output=files / f"of {name}")
        assert len(reads) == count
        assert len(inverted) == (name == "field.nii.gz")
        for image in ("fixed", "part"):
            resample([files / name], [files / f"{image}.nii.gz"], how, reference=moving, output=files / "alone.mha")
            alone, together = (
                read_image(f).data for f in (files / "alone.mha", files / f"of {name}" / f"{image}.nii.gz")
            )
            assert torch.equal(alone, together)
            (files / "alone.mha").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("apply", "affine.tfm", "-r", "fixed.nii.gz", "-o", "x.nii.gz"), "and then the image"),
        (("apply", "affine.tfm", "moving.nii.gz", "-o", "x.nii.gz"), "--reference"),
        (("apply", "affine.tfm", "--points", "points.csv", "-o", "x.nii.gz"), "no format has this suffix"),
        (("apply", "affine.tfm", "--points", "missing.csv", "-o", "x.csv"), "missing.csv"),
        (("apply", "affine.tfm", "--points", "points.csv", "--labels", "-o", "x.csv"), "leave them out"),
        (("compose", "affine.tfm", "missing.h5", "-o", "x.h5"), "missing.h5"),
        (("convert", "affine.tfm", "-o", "x.nii.gz"), "--reference"),
        (("convert", "field.nii.gz", "-o", "x.mat"), "holds one linear transform"),
        (("convert", "affine.tfm", "-o", "x.transform"), "no format has this suffix"),
        (("convert", "affine.tfm", "-o", "affine.tfm"), "exists already"),
        (("jacobian", "moving.nii.gz", "-r", "fixed.nii.gz", "-o", "x.nii.gz"), "value"),
    ],
)
def test_bad_transform_commands_are_one_line_and_leave_nothing(arguments, message, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(file.name for file in files.iterdir())
    assert message in fails(capsys, *arguments)
    assert sorted(file.name for file in files.iterdir()) == before


def test_a_case_that_fails_does_not_end_an_evaluation(files, capsys, monkeypatch):
    for kind, suffix in (("images", ""), ("labels", "_labels")):
        (files / "set" / kind).mkdir(parents=True)
        for name in ("another", "fixed", "moving", "other"):
            source = "fixed" if "other" in name else name
            shutil.copy(files / f"{source}{suffix}.nii.gz", files / "set" / kind / f"{name}.nii.gz")
    (files / "set" / "images" / "other.nii.gz").write_bytes((files / "fixed.nii.gz").read_bytes()[:700])
    monkeypatch.setattr("learnreg.apps.evaluate.EVERY", 0.0)
    common = ("evaluate", files / "set", "--method", "rigid", "-o", files / "out", "--quiet")
    with pytest.raises(SystemExit) as ended:
        call(*common)
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "other.nii.gz" in told.err
    assert "rigid" in told.out
    written = json.loads((files / "out" / "metrics.json").read_text())
    assert {row["case"] for row in written["cases"]} == {"fixed < moving", "moving < fixed"}
    assert sorted(written["failed"]) == ["another < other", "other < another"]
    assert all("other.nii.gz" in reason for reason in written["failed"].values())
    assert "2 of 4 cases failed" in told.err
    assert "already holds table.md" in fails(capsys, *common)


@pytest.mark.parametrize(
    ("name", "form"), [("t.mat", "fsl"), ("t.lta", None), ("t.txt", "c3d"), ("d.npz", None), ("d.nii.gz", "fsl")]
)
def test_files_of_other_tools_are_converted_and_applied(files, name, form):
    """The images are named in ``convert``; ``apply`` has them anyway."""
    fixed, moving = (str(files / f"{which}.nii.gz") for which in ("fixed", "moving"))
    given = (
        [str(files / "affine.tfm")]
        if name.startswith("t")
        else [str(files / "field.nii.gz"), str(files / "affine.tfm")]
    )
    out = str(files / name)
    with pytest.raises(InputError, match="--reference|--moving") if form != "c3d" else nullcontext():
        convert(given[-1:] if name.startswith("t") else given, out, to_format=form)
    convert(given, out, reference=fixed, moving=moving, to_format=form, overwrite=True)
    convert([out], str(files / "back.h5"), reference=fixed, moving=moving, from_format=form)
    points = torch.tensor([POINTS])
    expected = read_chain(given)(points)
    assert torch.allclose(read_transform(files / "back.h5")(points), expected, atol=2e-2)
    for file, kind in ((out, form), (str(files / "back.h5"), None)):
        how = Resampling(format=kind)
        resample([file], [moving], how, reference=fixed, output=f"{file}.nii.gz", overwrite=True)
    first, second = (read_image(f"{file}.nii.gz").data for file in (out, files / "back.h5"))
    assert first.max() > 300
    assert (first - second).abs().mean() < 0.5


def test_an_inverse_of_a_file_of_fsl_swaps_the_images(files):
    fixed, moving = (str(files / f"{which}.nii.gz") for which in ("fixed", "moving"))
    convert([str(files / "affine.tfm")], str(files / "t.mat"), reference=fixed, moving=moving, to_format="fsl")
    for file, kind in (("t.mat", "fsl"), ("affine.tfm", None)):
        how = Resampling(inverse=True, fill=100.0, format=kind)
        resample([files / file], [fixed], how, reference=moving, output=f"{files / file}.nii.gz", overwrite=True)
    first, second = (read_image(f"{files / file}.nii.gz").data for file in ("t.mat", "affine.tfm"))
    assert (first - second).abs().mean() < 0.5 < first.std()


def test_a_file_of_fsl_is_not_composed_without_its_own_images(files):
    fixed, moving = (str(files / f"{which}.nii.gz") for which in ("fixed", "moving"))
    convert([str(files / "affine.tfm")], str(files / "w.nii.gz"), reference=fixed, moving=moving, to_format="fsl")
    grid = read_image(fixed).grid
    with pytest.raises(InputError, match="convert it to .h5"):
        read_chain([str(files / "affine.tfm"), str(files / "w.nii.gz")], fixed=grid, moving=grid)


def test_convert_writes_an_ants_pair(files):
    given = [str(files / "field.nii.gz"), str(files / "affine.tfm")]
    convert(given, str(files / "pair_"), to_format="ants")
    pair = read_chain([str(files / "pair_1Warp.nii.gz"), str(files / "pair_0GenericAffine.mat")])
    points = torch.tensor([POINTS])
    assert torch.allclose(pair(points), read_chain(given)(points), atol=1e-4)
    with pytest.raises(InputError, match="exists already"):
        convert(given, str(files / "pair_"), to_format="ants")
