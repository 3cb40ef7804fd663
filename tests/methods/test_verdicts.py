import math
from dataclasses import replace

import pytest
import torch

from learnreg.fields import channels_first
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import read_image
from learnreg.methods import Registration, evidence, load_method, register, verdict
from learnreg.methods.base import guided_by_landmarks
from learnreg.methods.verdicts import EVIDENCE, Verdict, calibration, exit_status, judge
from learnreg.transforms import Affine, Composite, Displacement, align_centers
from tests.conftest import blob_image, make_grid
from tests.test_fields import smooth_field


def scene(grid, shift=(0.0, 0.0, 0.0)):
    """Blobs without labels."""
    image = blob_image(grid, shift)
    return Image(image.data, image.grid)


@pytest.fixture
def image(grid):
    return scene(grid)


def turned(angle, scales=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0), *, dtype=torch.float64):
    """Turn about z, then scale."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    matrix = torch.eye(4, dtype=dtype)
    matrix[:3, :3] = torch.diag(torch.tensor(scales, dtype=dtype)) @ rotation
    matrix[:3, 3] = torch.tensor(shift, dtype=dtype)
    return Affine(matrix)


def test_the_affine_part_is_found_on_any_grid(grid, image):
    transform = turned(0.4, (1.5, 0.8, 1.1)).to(grid.dtype)
    found = evidence(Registration(transform, image, image))
    assert found["rotation"] == pytest.approx(math.degrees(0.4), abs=12)  # that of the polar decomposition differs
    assert found["largest_scale"] == pytest.approx(1.5, rel=1e-3)
    assert found["smallest_scale"] == pytest.approx(0.8, rel=1e-3)
    assert found["nonlinear"] < 1e-3
    assert found["spread"] < 1e-3
    assert found["handedness"] == 1
    pure = evidence(Registration(turned(0.4).to(grid.dtype), image, image))
    assert pure["rotation"] == pytest.approx(math.degrees(0.4), abs=0.05)


def test_an_image_onto_itself(grid, image):
    found = evidence(Registration(Affine.identity(3, dtype=grid.dtype), image, image))
    assert found["correlation"] == pytest.approx(1, abs=1e-3)
    assert found["outline"] == pytest.approx(1, abs=1e-3)
    assert found["outside"] == pytest.approx(0, abs=1e-3)
    assert found["lost"] == pytest.approx(0, abs=1e-3)
    assert found["volume"] == pytest.approx(1, abs=1e-2)
    assert found["similarity"] > found["chance"]


def test_similarity_does_not_depend_on_contrast_or_scale(grid, image):
    same = Affine.identity(3, dtype=grid.dtype)
    plain = evidence(Registration(same, image, image))
    other = evidence(Registration(same, image.with_data(image.data * 3000 - 1000), image.with_data(500 * image.data)))
    assert other["similarity"] == pytest.approx(plain["similarity"], abs=0.02)
    assert other["information"] == pytest.approx(plain["information"], abs=0.02)


def test_what_lies_outside_is_its_share():
    """A box of content, shifted by half of its length out of the moving image."""
    grid = Grid.regular((16, 16, 16))
    full = Image(1 + 0.2 * torch.rand(1, 1, 16, 16, 16), grid)
    full = full.with_data(torch.where(torch.rand(full.data.shape) < 0.02, 0.0, full.data))
    found = evidence(Registration(Affine.translation([8.0, 0.0, 0.0]), full, full))
    assert found["outside"] == pytest.approx(0.5, abs=0.02)
    assert found["lost"] == pytest.approx(0.5, abs=0.03)


def test_lost_content_does_not_depend_on_volume_changes(grid, image):
    """A map that enlarges the image shows all of it."""
    around = grid.center[0]
    matrix = torch.eye(4, dtype=grid.dtype)
    matrix[:3, :3] *= 0.9
    matrix[:3, 3] = 0.1 * around
    inside = image.data.amax(dim=1, keepdim=True)
    distance = (grid.points - around).norm(dim=-1).unsqueeze(1)
    small = image.with_data(torch.where(distance < 8, inside, 0 * inside))
    shrunk = torch.eye(4, dtype=grid.dtype)
    shrunk[:3, :3] *= 1 / 0.9
    shrunk[:3, 3] = (1 - 1 / 0.9) * around
    assert evidence(Registration(Affine(shrunk), small, small))["lost"] < 0.1
    assert evidence(Registration(Affine(matrix), small, small))["lost"] < 0.1


def test_failures(grid, image):
    same = Affine.identity(3, dtype=grid.dtype)
    field = torch.zeros(1, 3, *grid.shape, dtype=grid.dtype)
    field[..., 0] = torch.nan
    noise = image.with_data(torch.rand(image.data.shape, generator=torch.Generator().manual_seed(1)).to(image.data))
    constant = image.with_data(torch.full_like(image.data, 3.0))
    mirror = torch.eye(4, dtype=grid.dtype)
    mirror[0, 0] = -1
    mirror[:3, 3] = torch.tensor([2 * float(grid.center[0, 0]), 0.0, 0.0])
    rough = 3 * torch.randn(field.shape, generator=torch.Generator().manual_seed(2), dtype=grid.dtype)
    cases = {
        "not finite": Registration(Displacement(field, grid), image, image),
        "constant": Registration(same, image, constant),
        "do not overlap": Registration(Affine.translation([500.0, 0.0, 0.0]).to(grid.dtype), image, image),
        "reflection": Registration(Affine(mirror), image, image),
        "fold": Registration(Displacement(rough, grid), image, image),
    }
    for words, result in cases.items():
        found = verdict(result)
        assert found.level == "FAIL", words
        assert words in str(found), (words, found)
    assert verdict(Registration(same, image, noise)).level != "PASS"


def test_a_good_registration_passes():
    grid = make_grid("LPS", (32, 36, 34), (1.0, 1.0, 1.0), torch.float32)
    torch.manual_seed(0)
    fixed = scene(grid)
    texture = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 9, 8), grid.shape, mode="trilinear")
    fixed = fixed.with_data(fixed.data * (0.5 + texture))
    moving = fixed
    transform = Displacement(smooth_field(grid, 0.3).float(), grid)
    found = verdict(Registration(transform, fixed, moving))
    assert found.level == "PASS", found
    assert found.reasons == ()
    assert 0 <= found.measures["doubt"] < 0.5


def test_slices_in_space_and_in_the_plane(tmp_path):
    torch.manual_seed(0)
    data = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8), (48, 48), mode="bicubic")
    flat = Image(data, Grid.regular((48, 48)))
    thick = Image(data[:, :, None], Grid.regular((1, 48, 48), spacing=(1.0, 1.0, 5.0)))
    for image in (flat, thick):
        found = verdict(Registration(Affine.identity(image.ndim), image, image))
        assert all(math.isfinite(value) for value in found.measures.values())
        assert found.level == "PASS", found


def test_channels_and_masks(grid, image):
    same = Affine.identity(3, dtype=grid.dtype)
    colored = Image(image.data.expand(-1, 3, -1, -1, -1).clone(), grid)
    assert evidence(Registration(same, colored, colored))["correlation"] == pytest.approx(1, abs=1e-3)
    mask = torch.zeros_like(image.data)
    mask[..., 4:-4] = 1
    assert evidence(Registration(same, replace(image, mask=mask), image))["correlation"] == pytest.approx(1, abs=1e-2)


def test_every_evidence_has_words_and_the_table_names_known_ones(image, grid):
    measures = evidence(Registration(Affine.identity(3, dtype=grid.dtype), image, image))
    for name, one in EVIDENCE.items():
        assert math.isfinite(one.value(measures)), name
        assert one.sentence(measures)
    for table in calibration().values():
        assert set(table["evidence"]) <= set(EVIDENCE)
        assert 0 < table["warn"] < table["fail"] < 1
        for name, row in table["evidence"].items():  # no evidence counts against its sense
            assert row["weight"] * (-1 if EVIDENCE[name].more_is_better else 1) >= 0, name


def test_extreme_measures_have_a_verdict(image, grid):
    measures = evidence(Registration(Affine.identity(3, dtype=grid.dtype), image, image))
    for name in measures:
        if name != "finite":
            for value in (0.0, 1e30):
                assert judge({**measures, name: value}).level in ("PASS", "WARN", "FAIL"), name


def test_exit_status():
    assert [exit_status(level, strict=True) for level in ("PASS", "WARN", "FAIL")] == [0, 0, 1]
    assert exit_status("FAIL", strict=False) == 0
    assert str(Verdict("PASS")) == "PASS"


def test_landmarks_that_guide_are_told_from_those_that_measure():
    grid = make_grid("LPS", (16, 16, 16), (2.0, 2.0, 2.0), torch.float32)
    points = grid.points[:, 2:14:4, 2:14:4, 2:14:4].reshape(1, -1, 3)
    fixed = replace(scene(grid), landmarks=points)
    moving = replace(scene(grid), landmarks=points + 1.0)
    lung, rigid = load_method("lung"), load_method("rigid")
    assert guided_by_landmarks(lung, fixed, moving)
    assert not guided_by_landmarks(lung, fixed, replace(moving, landmarks=None))
    assert not guided_by_landmarks(rigid, fixed, moving)
    for stage in lung.stages.values():
        if hasattr(stage, "counts"):
            stage.counts = tuple(1 for _ in stage.counts)
    assert not register(fixed, moving, rigid, progress=False).guided


def test_a_composite_is_measured_as_a_whole(grid, image):
    field = Displacement(channels_first(0 * grid.points), grid)
    both = Composite((field, turned(0.2).to(grid.dtype)))
    assert evidence(Registration(both, image, image))["rotation"] == pytest.approx(math.degrees(0.2), abs=0.05)


def test_a_brain_with_its_skull_and_one_without():
    """A ball, and the same ball inside of a shell: the rest agrees."""
    grid = Grid.regular((48, 48, 48))
    radius = grid.points.norm(dim=-1)[:, None]
    texture = 0.6 + 0.2 * torch.sin(grid.points.sum(-1) / 3)[:, None]
    ball = texture * (radius < 12)
    skull = ball + 0.9 * ((radius > 15) & (radius < 21))
    for pair in ((ball, skull), (skull, ball)):
        found = verdict(Registration(Affine.identity(3), *(Image(data, grid) for data in pair)))
        assert found.level != "PASS"
        assert any("with skull and without" in reason for reason in found.reasons)
    assert verdict(Registration(Affine.identity(3), Image(ball, grid), Image(ball, grid))).level == "PASS"


def test_skulls_of_real_heads(real_data):
    folder = real_data / "multimodal"
    names = ("ms07_T1", "spm_single_subj_T1", "spm_avg152T1")  # without, with, with
    bare, head, other = (read_image(folder / f"{name}.nii.gz") for name in names)
    for fixed, moving, told in ((bare, head, True), (head, bare, True), (head, other, False)):
        reasons = verdict(Registration(align_centers(fixed.grid, moving.grid), fixed, moving)).reasons
        assert any("with skull and without" in reason for reason in reasons) == told
