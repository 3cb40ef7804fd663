"""Real images from ``LEARNREG_DATA``; each test states what it starts from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch.nn.functional import avg_pool2d

from learnreg.apps.main import main
from learnreg.data.augmentation import reoriented
from learnreg.data.datasets import reversed_pairs
from learnreg.data.formats import read_subjects
from learnreg.data.preprocessing import ModelSpace
from learnreg.data.store import ImageStore
from learnreg.grid import Grid, apply_affine
from learnreg.image import Image
from learnreg.io import read_image
from learnreg.landmarks import read_landmark_pairs
from learnreg.methods import OneShotMethod, load_method, register
from learnreg.metrics import dice_scores, score, target_registration_error
from learnreg.networks import load_checkpoint
from learnreg.optimization.initialization import rotation
from learnreg.orientation import Orientation
from learnreg.transforms import Affine
from learnreg.warping import warp

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def register_files(fixed, moving, output, *more, labels=None):
    arguments = ["register", fixed, moving, "-o", output, "--quiet", *more]
    if labels:
        arguments += ["--fixed-labels", labels[0], "--moving-labels", labels[1]]
    main([str(a) for a in arguments])
    return json.loads((output / "metrics.json").read_text())


def same_as_sitk(fixed, moving, output):
    """Share of voxels in which ``sitk.Resample`` with the saved transform agrees within 1 % of the range."""
    images = [sitk.ReadImage(str(f), sitk.sitkFloat32) for f in (fixed, moving)]
    transform = sitk.ReadTransform(str(output / "transform.h5"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "warped.nii.gz")))
    return float((np.abs(theirs - ours) <= 0.01 * np.ptp(ours)).mean())


def test_hippocampus_starts_where_the_protocol_says(real_data):
    """Files 161-200 against the reversed order, 64^3, centered: mean Dice 0.5."""
    cache = ImageStore(ModelSpace(1.0, (64, 64, 64)))
    pairs = reversed_pairs(read_subjects(real_data / "hippocampus")[160:200])
    assert len(pairs) == 40
    scores = [float(dice_scores(cache(m).labels, cache(f).labels, [1, 2]).mean()) for f, m in pairs]
    assert np.mean(scores) == pytest.approx(0.50, abs=0.02)


def test_landmarks_guide_lungs_that_masks_alone_do_not_tell(real_data):
    """Expiration to inspiration, 9.2 voxels apart: half of the landmarks guide, the other half measure."""
    lung = real_data / "lung"
    fixed, moving = (read_image(lung / f"copd_masks/case_09_{phase}.nii.gz") for phase in ("exp", "insp"))
    ours, theirs = read_landmark_pairs(lung / "copd_landmarks/case_09.csv", fixed.grid, moving.grid)
    method = load_method("lung")
    method.stages["deformation"].factors, method.stages["deformation"].limits = (8.0, 4.0), (40, 40)
    error = {}
    for guided in (False, True):
        pair = [
            replace(image, landmarks=points[:, ::2] if guided else None)
            for image, points in ((fixed, ours), (moving, theirs))
        ]
        found = method(*pair).transform
        error[guided] = target_registration_error(found, ours[:, 1::2], theirs[:, 1::2]).mean() / 1.6
    assert error[True] < 2.2 < 3.5 < error[False] < 9.2


@pytest.mark.parametrize(("a", "b"), [(0, 159), (60, 99)])
def test_hippocampus_in_native_space(real_data, tmp_path, a, b):
    """Crops of different sizes, intensity scales that differ by up to 10,000."""
    first, second = (read_subjects(real_data / "hippocampus")[i] for i in (a, b))
    metrics = register_files(first.image, second.image, tmp_path / "out", labels=(first.labels, second.labels))
    assert metrics["after"]["dice"] > max(metrics["before"]["dice"] + 0.1, 0.7)
    assert metrics["folding_percent"] < 0.1
    assert same_as_sitk(first.image, second.image, tmp_path / "out") > 0.99


def test_the_hippocampus_model_needs_no_header(real_data):
    """Flips and right-angle turns of both crops change its answer by rounding only."""
    subjects = read_subjects(real_data / "hippocampus")[160:162]
    images = [read_image(s.image, labels=s.labels) for s in subjects]
    lps = Orientation((0, 1, 2), (False, True, True))  # these files are RAS
    images = [Image(lps(i.data), Grid.regular(i.grid.shape), labels=lps(i.labels)) for i in images]
    method = OneShotMethod(load_checkpoint("hippocampus"))
    reached = []
    for orientation in Orientation.every(3)[::9]:
        fixed, moving = (reoriented(image, orientation) for image in images)
        found = method(replace(fixed, labels=None), replace(moving, labels=None))
        reached.append(float(score(fixed, moving, found.transform).dice.mean()))
    assert max(reached) - min(reached) < 0.005
    assert min(reached) > 0.75


def test_cardiac_ed_to_es(real_data, tmp_path):
    """Slices of 8 to 10 mm; cavity Dice 0.84 at the start."""
    folder = real_data / "cardiac"
    files = [folder / f"SCD0000101_{phase}.nii.gz" for phase in ("ED", "ES")]
    labels = [folder / f"SCD0000101_{phase}_label.nii.gz" for phase in ("ED", "ES")]
    metrics = register_files(*files, tmp_path / "out", "--method", "fast", labels=labels)
    assert metrics["before"]["dice"] < 0.86
    assert metrics["after"]["dice"] > 0.9
    assert metrics["folding_percent"] < 0.01
    assert same_as_sitk(*files, tmp_path / "out") > 0.99


def test_2d_brains(real_data, tmp_path):
    """27 labels of two people on an axial slice, affine-aligned: Dice 0.43 at the start."""
    folder = real_data / "2d" / "oasis_trt"
    files = [folder / "images" / f"{i}.nii.gz" for i in ("01", "02")]
    labels = [folder / "labels" / f"{i}.nii.gz" for i in ("01", "02")]
    metrics = register_files(*files, tmp_path / "out", labels=labels)
    assert metrics["after"]["dice"] > metrics["before"]["dice"] + 0.1
    assert metrics["folding_percent"] < 0.1


@pytest.mark.parametrize("name", ["spm_avg152T2", "spm_avg152PD"])
def test_another_modality_comes_back_within_a_voxel(real_data, name):
    """T1 as fixed; T2 or PD turned by 6 to 8 degrees and shifted by 11 mm. Mean error in mm inside the head, 14 before."""
    fixed, other = (read_image(real_data / "multimodal" / f"{n}.nii.gz") for n in ("spm_avg152T1", name))
    turn = rotation([np.deg2rad(a) for a in (6, -5, 8)], 3)
    truth = Affine.about(turn, torch.tensor([[6.0, -8.0, 5.0]]), fixed.grid.center)
    moving = warp(other, truth.inverse(), other.grid)
    inside = fixed.data[0, 0] > 0.2 * fixed.data.quantile(0.99)

    def error(transform):
        return float((transform.map_grid(fixed.grid) - truth.map_grid(fixed.grid)).norm(dim=-1)[0][inside].mean())

    found = register(Image(fixed.data, fixed.grid), Image(moving.data, moving.grid), "multimodal", progress=False)
    assert error(Affine.identity(3)) > 14
    assert error(found.transform) < 2.0  # voxels of 2 mm


@pytest.mark.parametrize(("method", "bound"), [("deformable", 6.0), ("multimodal", 5.0)])
def test_hands_that_are_turned(real_data, method, bound):
    """X-rays of two hands, 22 pixels apart and turned by 30 degrees; 7 landmarks in a window of 20 by 25."""
    folder = real_data / "2d" / "fair"
    hands = [read_image(folder / name) for name in ("hands-R.jpg", "hands-T.jpg")]
    fixed, moving = (Image(hand.data[:, :1], Grid.regular(hand.grid.shape)) for hand in hands)
    rows = np.loadtxt(folder / "hands_landmarks.csv", delimiter=",", skiprows=1)
    pixels = torch.tensor(rows).reshape(-1, 2, 2) * torch.tensor([1 / 20, -1 / 25]) * 128 + torch.tensor([-0.5, 127.5])
    theirs, ours = (apply_affine(fixed.grid.affine, pixels[None, :, k].to(fixed.grid.affine)) for k in (0, 1))
    before = target_registration_error(Affine.identity(2), ours, theirs).mean()
    after = target_registration_error(register(fixed, moving, method).transform, ours, theirs).mean()
    assert before > 20
    assert after < bound


@pytest.mark.parametrize("turns", [1, 2])
def test_histology_that_is_turned(real_data, turns):
    """Two stains of one section, the second turned by 90 or 180 degrees; 78 landmarks, in pixels of 183 by 222."""
    folder, names = real_data / "2d" / "histology", ("Izd2-29-041-w35_HE", "Izd2-29-041-w35_proSPC")
    images, points = [], []
    for name in names:
        colors = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{name}.jpg")))).float()
        images.append(avg_pool2d(colors.mean(-1)[None, None], 4))
        rows = np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1)[:78, 1:]
        points.append((torch.from_numpy(rows).float() + 0.5) / 4 - 0.5)
    for _ in range(turns):
        width = images[1].shape[3]
        images[1] = torch.rot90(images[1], 1, (2, 3)).contiguous()
        points[1] = torch.stack([points[1][:, 1], width - 1 - points[1][:, 0]], 1)
    grids = [Grid.regular(image.shape[2:]) for image in images]
    ours, theirs = (apply_affine(grid.affine, point[None]) for grid, point in zip(grids, points, strict=True))
    fixed, moving = (Image(image, grid) for image, grid in zip(images, grids, strict=True))
    assert target_registration_error(Affine.identity(2), ours, theirs).median() > 50
    found = register(fixed, moving, "rigid", progress=False).transform
    assert target_registration_error(found, ours, theirs).median() < 3
