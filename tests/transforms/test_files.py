"""Transform files of other tools, compared with what those tools, nitransforms, nibabel and scipy make of them."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import map_coordinates, zoom

from learnreg.errors import InputError, MissingFileError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import to_sitk, write_image
from learnreg.transforms import Affine, Composite, Displacement, read_transform, write_transform
from learnreg.transforms.files import format_of
from learnreg.transforms.itk import read_itk
from learnreg.transforms.linear_files import read_lta
from learnreg.warping import warp
from tests.conftest import DIRECTIONS, blob_image, make_grid

FLIP = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))  # makes the axes left-handed
MATRIX = torch.tensor(
    [[1.03, 0.11, -0.05, 2.0], [-0.09, 0.97, 0.12, -3.0], [0.04, -0.1, 1.01, 1.5], [0.0, 0.0, 0.0, 1.0]]
)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
POINTS = torch.tensor([[[0.0, 0.0, 0.0], [3.0, -4.0, 5.0], [-6.0, 2.5, -7.0]]])
ORIENTATIONS = [(name, hand) for name in sorted(DIRECTIONS) for hand in ("right", "left")]


def oriented(name, hand, shape=(16, 18, 22), spacing=(1.1, 1.6, 2.3), origin=None) -> Grid:
    turn = DIRECTIONS[name] @ FLIP if hand == "left" else DIRECTIONS[name]
    return Grid.regular(shape, spacing, origin, turn)


@pytest.fixture(params=ORIENTATIONS, ids="-".join)
def grids(request) -> tuple[Grid, Grid]:
    """A fixed grid, and a moving one that differs in all: shape, spacing, orientation and handedness."""
    name, hand = request.param
    other = ORIENTATIONS[(ORIENTATIONS.index(request.param) + 3) % len(ORIENTATIONS)]
    moving = oriented(*other, shape=(20, 15, 17), spacing=(1.9, 1.8, 1.7))
    affine = moving.affine.clone()
    affine[:, :3, 3] += torch.tensor([3.0, -4.0, 2.0])
    return oriented(name, hand), Grid(moving.shape, affine)


def bent(grid: Grid, size: float = 1.5) -> Displacement:
    return Displacement((size * torch.sin(grid.points / 7.0).roll(1, -1)).movedim(-1, 1), grid)


def nibabel_image(grid: Grid) -> nibabel.Nifti1Image:
    affine = TO_RAS @ grid.affine[0].double().numpy()
    return nibabel.Nifti1Image(np.zeros(grid.shape[::-1], np.uint8), affine)


def mapped_by(matrix, points):
    """What a matrix in mm RAS does to points in mm LPS."""
    found = np.linalg.inv(TO_RAS) @ matrix @ TO_RAS
    return points @ found[:3, :3].T + found[:3, 3]


# FSL ---------------------------------------------------------------------------------------------------------


def test_flirt_matrices_are_those_of_nitransforms(grids, tmp_path):
    io = pytest.importorskip("nitransforms.io.fsl")
    fixed, moving = grids
    write_transform(Affine(MATRIX), fixed, tmp_path / "out.mat", format="fsl", moving=moving)
    theirs = io.FSLLinearTransform.from_filename(tmp_path / "out.mat")
    ras = theirs.to_ras(moving=nibabel_image(moving), reference=nibabel_image(fixed))
    np.testing.assert_allclose(mapped_by(ras, POINTS[0].numpy()), Affine(MATRIX)(POINTS)[0], atol=1e-4)
    again = read_transform(tmp_path / "out.mat", format="fsl", fixed=fixed, moving=moving)
    assert torch.allclose(again(POINTS), Affine(MATRIX)(POINTS), atol=1e-4)


PAIRS = ["from-fsnative_to-bold", "from-fsnative_to-scanner", "from-scanner_to-bold", "from-scanner_to-fsnative"]


def grid_of_lta(file: Path, which: str) -> Grid:
    """The grid that an .lta describes, read by nibabel's header of FreeSurfer images."""
    lines = file.read_text().split(f"{which} volume info")[1].splitlines()[:9]
    values = {line.split("=")[0].strip(): line.split("=")[1].split("#")[0].split() for line in lines if "=" in line}
    header = nibabel.freesurfer.mghformat.MGHHeader()
    size = [int(v) for v in values["volume"]]
    header.set_data_shape(size)
    header["delta"] = [float(v) for v in values["voxelsize"]]
    header["Mdc"] = [[float(v) for v in values[f"{axis}ras"]] for axis in "xyz"]
    header["Pxyz_c"] = [float(v) for v in values["cras"]]
    return Grid(tuple(size[::-1]), torch.from_numpy(TO_RAS @ header.get_affine()).float())


@pytest.mark.parametrize("name", PAIRS)
def test_files_of_freesurfer_fsl_and_itk_for_one_alignment_agree(name):
    """Written by lta_convert; they come with nitransforms."""
    folder = Path(pytest.importorskip("nitransforms").__file__).parent / "tests" / "data" / "regressions"
    if not folder.exists():
        pytest.skip("this nitransforms comes without its data")
    lta, fsl, itk = (folder / f"{name}_mode-image.{suffix}" for suffix in ("lta", "fsl", "tfm"))
    fixed, moving = grid_of_lta(lta, "dst"), grid_of_lta(lta, "src")
    points = fixed.corners.points
    expected = read_itk(itk)(points)
    assert (expected - points).norm(dim=-1).max() > 0.05
    assert (read_transform(lta)(points) - expected).norm(dim=-1).max() < 1e-3
    found = read_transform(fsl, format="fsl", fixed=fixed, moving=moving)(points)
    assert (found - expected).norm(dim=-1).max() < 1e-2


def test_voxel_to_voxel_and_ras_to_ras_are_one_transform():
    folder = Path(pytest.importorskip("nitransforms").__file__).parent / "tests" / "data"
    if not (folder / "bold-to-t1w.lta").exists():
        pytest.skip("this nitransforms comes without its data")
    voxels, physical = read_transform(folder / "bold-to-t1w.v2v.lta"), read_transform(folder / "bold-to-t1w.lta")
    points = grid_of_lta(folder / "bold-to-t1w.v2v.lta", "dst").corners.points
    assert (voxels(points) - points).norm(dim=-1).max() > 1
    assert (voxels(points) - physical(points)).norm(dim=-1).max() < 1e-2


def fsl_coordinates(image: nibabel.Nifti1Image, index):
    """FSL's rule: voxels times voxel sizes, the first axis from the other end if the determinant is positive."""
    zooms, first = np.array(image.header.get_zooms()[:3]), image.shape[0] - 1
    flipped = np.linalg.det(image.affine[:3, :3]) > 0
    return np.concatenate([first - index[..., :1] if flipped else index[..., :1], index[..., 1:]], -1) * zooms


@pytest.mark.parametrize("absolute", [False, True])
def test_a_warp_field_of_fsl_pulls_the_voxels_that_applywarp_pulls(grids, tmp_path, absolute):
    """Voxels of the moving image from FSL's coordinates, which scipy then samples."""
    fixed, moving = grids
    transform = Composite((bent(fixed), Affine(MATRIX)))
    write_transform(transform, fixed, tmp_path / "warp.nii.gz", format="fsl", moving=moving)
    stored = nibabel.load(tmp_path / "warp.nii.gz")
    assert stored.shape == (*fixed.shape[::-1], 3)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in stored.shape[:3]], indexing="ij"), -1).astype(float)
    there = fsl_coordinates(stored, index) + stored.get_fdata()
    if absolute:
        nibabel.save(nibabel.Nifti1Image(there.astype(np.float32), stored.affine), tmp_path / "warp.nii.gz")
    source = nibabel_image(moving)
    voxels = there / np.array(source.header.get_zooms()[:3])
    if np.linalg.det(source.affine[:3, :3]) > 0:
        voxels[..., 0] = source.shape[0] - 1 - voxels[..., 0]
    values = blob_image(moving, radii=(14.0, 12.0, 13.0)).data
    pulled = map_coordinates(values[0, 0].numpy().T.astype(float), np.moveaxis(voxels, -1, 0), order=1)
    form = "fsl-absolute" if absolute else "fsl"
    again = read_transform(tmp_path / "warp.nii.gz", format=form, moving=moving)
    inside = np.all((voxels >= 0) & (voxels <= np.array(source.shape) - 1), -1)
    assert inside.sum() > 300
    warped = warp(Image(values, moving), again, fixed).data[0, 0].numpy().T
    assert np.abs(warped - pulled)[inside].max() < 2e-3


def test_relative_and_absolute_are_told_apart_as_by_fsl(tmp_path):
    grid = make_grid(dtype=torch.float32)
    write_transform(bent(grid), grid, tmp_path / "ours.nii.gz", format="fsl", moving=grid)
    stored = nibabel.load(tmp_path / "ours.nii.gz")
    index = np.stack(np.meshgrid(*[np.arange(n) for n in stored.shape[:3]], indexing="ij"), -1).astype(float)
    relative = stored.get_fdata()
    for name, values in (("relative", relative), ("absolute", relative + fsl_coordinates(stored, index))):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), stored.affine), tmp_path / f"{name}.nii.gz")
        found = read_transform(tmp_path / f"{name}.nii.gz", format="fsl", moving=grid)
        assert torch.allclose(found(POINTS), bent(grid)(POINTS), atol=1e-3)


def test_coefficients_of_fnirt_are_refused_with_the_command_that_makes_a_field(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4))
    image.header["intent_code"] = 2007
    nibabel.save(image, tmp_path / "coef.nii.gz")
    with pytest.raises(InputError, match="fnirtfileutils"):
        read_transform(tmp_path / "coef.nii.gz", moving=make_grid())


# FreeSurfer, Convert3D, X5 -----------------------------------------------------------------------------------


def test_lta_is_that_of_nitransforms_both_ways(grids, tmp_path):
    lta = pytest.importorskip("nitransforms.io.lta")
    fixed, moving = grids
    write_transform(Affine(MATRIX), fixed, tmp_path / "ours.lta", moving=moving)
    theirs = lta.FSLinearTransform.from_string((tmp_path / "ours.lta").read_text())
    np.testing.assert_allclose(mapped_by(theirs.to_ras(), POINTS[0].numpy()), Affine(MATRIX)(POINTS)[0], atol=1e-4)
    for grid, which in ((fixed, "dst"), (moving, "src")):
        assert grid_of_lta(tmp_path / "ours.lta", which).matches(grid, 1e-3)
    ras = TO_RAS @ MATRIX.double().numpy() @ TO_RAS
    struct = lta.FSLinearTransform.from_ras(ras, moving=nibabel_image(fixed), reference=nibabel_image(moving))
    (tmp_path / "theirs.lta").write_text(struct.to_string())
    assert torch.allclose(read_transform(tmp_path / "theirs.lta")(POINTS), Affine(MATRIX)(POINTS), atol=1e-4)


def test_voxel_to_voxel_by_nibabel(grids, tmp_path):
    """An .lta of type 0, made from the affines of nibabel's images."""
    fixed, moving = grids
    write_transform(Affine(MATRIX), fixed, tmp_path / "ras.lta", moving=moving)
    lines = (tmp_path / "ras.lta").read_text().splitlines()
    ras = TO_RAS @ MATRIX.double().numpy() @ TO_RAS  # fixed to moving; the file has moving to fixed
    voxels = np.linalg.inv(nibabel_image(fixed).affine) @ np.linalg.inv(ras) @ nibabel_image(moving).affine
    lines[0], lines[5:9] = "type      = 0 # LINEAR_VOX_TO_VOX", [" ".join(map(str, row)) for row in voxels]
    lines = [line.replace("unknown", "/a folder/with = and #/x.mgz") for line in lines]
    (tmp_path / "voxels.lta").write_text("\n".join(["# created by", "", *lines]))
    assert torch.allclose(read_transform(tmp_path / "voxels.lta")(POINTS), Affine(MATRIX)(POINTS), atol=1e-4)
    (tmp_path / "invalid.lta").write_text("\n".join(lines).replace("valid = 1", "valid = 0"))
    with pytest.raises(InputError, match="name the moving image"):
        read_transform(tmp_path / "invalid.lta")
    again = read_lta(tmp_path / "invalid.lta", fixed, moving)
    assert torch.allclose(again(POINTS), Affine(MATRIX)(POINTS), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("type      = 1", "type      = 14"), "lta_convert"),
        (("nxforms   = 1", "nxforms   = 2"), "lta_convert"),
        (("1 4 4", "1 4"), "not an .lta"),
        (("volume = ", "volume = x"), "not an .lta"),
    ],
)
def test_an_lta_that_cannot_be_read(tmp_path, change, message):
    write_transform(Affine(MATRIX), make_grid(), tmp_path / "good.lta", moving=make_grid())
    (tmp_path / "bad.lta").write_text((tmp_path / "good.lta").read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        read_transform(tmp_path / "bad.lta")


def test_a_matrix_of_c3d_is_the_map_in_ras(tmp_path):
    write_transform(Affine(MATRIX), make_grid(), tmp_path / "greedy.mat", format="c3d")
    matrix = np.loadtxt(tmp_path / "greedy.mat")
    np.testing.assert_allclose(mapped_by(matrix, POINTS[0].numpy()), Affine(MATRIX)(POINTS)[0], atol=1e-5)
    again = read_transform(tmp_path / "greedy.mat", format="c3d")
    assert torch.allclose(again(POINTS), Affine(MATRIX)(POINTS), atol=1e-5)


def test_x5_is_that_of_nitransforms_both_ways(grids, tmp_path):
    linear = pytest.importorskip("nitransforms.linear")
    from nitransforms.nonlinear import DenseFieldTransform

    fixed, _ = grids
    points = fixed.points[:, 3:-3:4, 3:-3:4, 3:-3:4].flatten(1, 3)
    in_ras = points[0].double().numpy() @ TO_RAS[:3, :3]
    write_transform(Affine(MATRIX), fixed, tmp_path / "linear.x5")
    theirs = linear.Affine.from_filename(tmp_path / "linear.x5", fmt="X5")
    np.testing.assert_allclose(theirs.map(in_ras) @ TO_RAS[:3, :3], Affine(MATRIX)(points)[0], atol=1e-4)
    assert torch.allclose(read_transform(tmp_path / "linear.x5")(points), Affine(MATRIX)(points), atol=1e-4)

    bend = Composite((bent(fixed), Affine(MATRIX)))
    write_transform(bend, fixed, tmp_path / "dense.x5")
    dense = DenseFieldTransform.from_filename(tmp_path / "dense.x5", fmt="X5")
    np.testing.assert_allclose(dense.map(in_ras) @ TO_RAS[:3, :3], bend(points)[0], atol=1e-2)
    assert torch.allclose(read_transform(tmp_path / "dense.x5")(points), bend(points), atol=1e-3)


def test_an_x5_file_that_is_none(tmp_path):
    pytest.importorskip("nitransforms")
    (tmp_path / "bad.x5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="no X5 file"):
        read_transform(tmp_path / "bad.x5")


# Learn2Reg ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".nii.gz"])
@pytest.mark.parametrize("half", [False, True])
def test_learn2reg_fields_warp_as_the_evaluation_of_the_challenge(grids, tmp_path, suffix, half):
    """Their script zooms a half field, adds it to the voxel indices, and samples with ``map_coordinates``."""
    fixed = grids[0]
    moving = grids[1].resized(fixed.shape)  # the challenge has one size for both
    transform = Composite((bent(fixed), Affine(MATRIX)))
    form = "learn2reg-half" if half else "learn2reg"
    write_transform(transform, fixed, tmp_path / f"d{suffix}", format=form, moving=moving)
    if suffix == ".npz":
        stored = np.load(tmp_path / "d.npz")["arr_0"].astype(float)
    else:
        stored = np.moveaxis(nibabel.load(tmp_path / "d.nii.gz").get_fdata(), -1, 0)
    assert stored.shape[1:] == ((11, 9, 8) if half else (22, 18, 16))
    if half:
        stored = np.stack([zoom(component, 2, order=1) for component in stored])
    identity = np.stack(np.meshgrid(*[np.arange(n) for n in fixed.shape[::-1]], indexing="ij"))
    values = blob_image(moving, radii=(14.0, 12.0, 13.0)).data
    voxels = identity + stored
    pulled = map_coordinates(values[0, 0].numpy().T.astype(float), voxels, order=1)
    again = read_transform(tmp_path / f"d{suffix}", format="learn2reg", fixed=fixed, moving=moving)
    warped = warp(Image(values, moving), again, fixed).data[0, 0].numpy().T
    inside = np.all([(v >= 0) & (v <= n - 1) for v, n in zip(voxels, fixed.shape[::-1], strict=True)], 0)
    assert inside.sum() > 300
    assert np.abs(warped - pulled)[inside].max() < 2e-3
    truth = warp(Image(values, moving), transform, fixed).data[0, 0].numpy().T
    assert np.abs(warped - truth)[inside].max() < (0.05 if half else 5e-3)


def test_a_learn2reg_file_that_does_not_fit(tmp_path):
    grid = make_grid()
    np.savez(tmp_path / "wrong.npz", np.zeros((3, 4, 4, 4), np.float16))
    with pytest.raises(InputError, match="half of it"):
        read_transform(tmp_path / "wrong.npz", fixed=grid, moving=grid)
    np.savez(tmp_path / "pickle.npz", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        read_transform(tmp_path / "pickle.npz", fixed=grid, moving=grid)
    with pytest.raises(InputError, match="--moving"):
        read_transform(tmp_path / "wrong.npz", fixed=grid)


# ANTs --------------------------------------------------------------------------------------------------------


def test_an_ants_pair_is_two_files_that_itk_composes(grids, tmp_path):
    fixed, _ = grids
    transform = Composite((bent(fixed), Affine(MATRIX)))
    write_transform(transform, fixed, tmp_path / "out_", format="ants")
    field = sitk.ReadImage(str(tmp_path / "out_1Warp.nii.gz"), sitk.sitkVectorFloat64)
    linear = sitk.ReadTransform(str(tmp_path / "out_0GenericAffine.mat"))
    both = sitk.CompositeTransform([linear, sitk.DisplacementFieldTransform(field)])  # the last one first
    inner = fixed.points[0, 3:-3:4, 3:-3:4, 3:-3:4].flatten(0, 2)
    expected = torch.tensor([both.TransformPoint(point) for point in inner.double().tolist()])
    for path in ("out_", "out_0GenericAffine.mat", "out_1Warp.nii.gz"):
        found = read_transform(tmp_path / path, format="ants")(inner[None])[0]
        assert torch.allclose(found, expected.float(), atol=1e-3)
    with pytest.raises(MissingFileError, match="prefix"):
        read_transform(tmp_path / "other_", format="ants")


@pytest.mark.slow
def test_ants_applies_a_pair_as_we_do_to_images_and_points_both_ways(grids, tmp_path):
    ants = pytest.importorskip("ants")
    fixed, moving = grids
    transform = Composite((bent(fixed), Affine(MATRIX)))
    write_transform(transform, fixed, tmp_path / "out_", format="ants")
    image = blob_image(moving, radii=(14.0, 12.0, 13.0))
    write_image(image.data[0], moving, tmp_path / "moving.nii.gz")
    write_image(torch.zeros(1, *fixed.shape), fixed, tmp_path / "fixed.nii.gz")
    files = [str(tmp_path / "out_1Warp.nii.gz"), str(tmp_path / "out_0GenericAffine.mat")]
    theirs = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")), ants.image_read(str(tmp_path / "moving.nii.gz")), files
    ).numpy()
    ours = warp(image, read_transform(tmp_path / "out_", format="ants"), fixed).data[0, 0].numpy().T
    assert ours.max() > 0.5
    assert np.mean(np.abs(theirs - ours) < 1e-3) > 0.98  # the rest lies in the last half voxel of the moving image

    import pandas

    inner = fixed.points[0, 4:-4:4, 4:-4:4, 4:-4:4].flatten(0, 2).double().numpy()
    table = pandas.DataFrame(inner, columns=["x", "y", "z"])
    there = ants.apply_transforms_to_points(3, table, files)[["x", "y", "z"]].to_numpy()
    np.testing.assert_allclose(there, transform(torch.from_numpy(inner).float()[None])[0], atol=1e-3)

    theirs_back = [str(tmp_path / "back_0GenericAffine.mat"), str(tmp_path / "back_1Warp.nii.gz")]
    write_transform(Affine(MATRIX), fixed, theirs_back[0])
    back = ants.apply_transforms_to_points(
        3, pandas.DataFrame(there, columns=["x", "y", "z"]), [theirs_back[0]], whichtoinvert=[True]
    )[["x", "y", "z"]].to_numpy()
    expected = read_transform(theirs_back[0]).inverse()(torch.from_numpy(there).float()[None])[0]
    np.testing.assert_allclose(back, expected, atol=1e-3)


@pytest.mark.slow
def test_what_ants_registers_is_read_as_ants_applies_it(tmp_path):
    ants = pytest.importorskip("ants")
    fixed = oriented("oblique", "left", (24, 26, 28), (2.0, 2.1, 2.2))
    moving = oriented("RAS", "right", (26, 24, 25), (2.1, 2.0, 2.3), (-20.0, 30.0, -25.0))
    pair = {"fixed": blob_image(fixed, radii=(16, 13, 12)), "moving": blob_image(moving, (5.0, 4, 3), (14, 14, 13))}
    loaded = {}
    for name, image in pair.items():
        write_image(image.data[0], image.grid, tmp_path / f"{name}.nii.gz")
        loaded[name] = ants.image_read(str(tmp_path / f"{name}.nii.gz"))
    result = ants.registration(
        loaded["fixed"],
        loaded["moving"],
        "SyNRA",
        outprefix=str(tmp_path / "r_"),
        reg_iterations=(10, 10, 5),
        random_seed=1,
    )
    theirs = ants.apply_transforms(loaded["fixed"], loaded["moving"], result["fwdtransforms"]).numpy()
    transform = read_transform(tmp_path / "r_", format="ants")
    ours = warp(pair["moving"], transform, fixed).data[0, 0].numpy().T
    assert (transform(fixed.points) - fixed.points).norm(dim=-1).max() > 3
    assert np.mean(np.abs(theirs - ours) < 2e-3) > 0.98


# Which format ------------------------------------------------------------------------------------------------


def test_the_format_is_found_or_asked_for(tmp_path):
    grid = make_grid(dtype=torch.float32)
    write_transform(Affine(MATRIX), grid, tmp_path / "ants.mat")
    write_transform(Affine(MATRIX), grid, tmp_path / "itk.txt")
    write_transform(bent(grid), grid, tmp_path / "itk.nii.gz")
    write_transform(bent(grid), grid, tmp_path / "fsl.nii.gz", format="fsl", moving=grid)
    assert [format_of(tmp_path / name) for name in ("ants.mat", "itk.txt", "itk.nii.gz")] == ["itk"] * 3
    assert format_of(tmp_path / "fsl.nii.gz") == "fsl"
    for name in ("flirt.mat", "c3d.txt"):
        np.savetxt(tmp_path / name, np.eye(4))
        with pytest.raises(InputError, match="--from"):
            read_transform(tmp_path / name)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "whose.nii.gz")
    with pytest.raises(InputError, match="fsl or learn2reg"):
        read_transform(tmp_path / "whose.nii.gz")
    with pytest.raises(InputError, match="Unknown format"):
        read_transform(tmp_path / "itk.txt", format="spm")
    with pytest.raises(InputError, match="suffixes"):
        write_transform(Affine(MATRIX), grid, tmp_path / "x.nii.gz", format="c3d")
    with pytest.raises(InputError, match="2-D"):
        read_transform(tmp_path / "flirt.mat", format="c3d", ndim=2)


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    grid = make_grid(dtype=torch.float32)
    for name, form in (("a.lta", None), ("a.mat", "fsl"), ("a.txt", "c3d")):
        with pytest.raises(InputError, match="deforms"):
            write_transform(bent(grid), grid, tmp_path / name, format=form, moving=grid)
    with pytest.raises(InputError, match="--moving"):
        write_transform(Affine(MATRIX), grid, tmp_path / "a.mat", format="fsl")
    np.savetxt(tmp_path / "singular.mat", np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(InputError, match="not invertible"):
        read_transform(tmp_path / "singular.mat", format="c3d")
    assert [file.name for file in tmp_path.iterdir()] == ["singular.mat"]


def test_a_field_of_itk_is_still_read(tmp_path):
    grid = make_grid(dtype=torch.float32)
    image = to_sitk(bent(grid).field[0], grid, vector=True)
    sitk.WriteImage(image, str(tmp_path / "field.mha"))
    assert torch.allclose(read_transform(tmp_path / "field.mha")(POINTS), bent(grid)(POINTS), atol=1e-4)
