"""Initial alignments by name: known large rotations are found, and a file with such a name is still reached."""

import math

import pytest
import torch

from learnreg.errors import InputError, InputTypeError, MissingFileError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.methods import register
from learnreg.methods.start import found_start
from learnreg.optimization.initialization import rotation
from learnreg.transforms import Affine, write_transform
from tests.conftest import blob_image

pytestmark = pytest.mark.slow


def turned(degrees, shift, ndim=3):
    """A body without symmetry, and the same body moved by a known rigid map onto a grid of its own."""
    grids = Grid.regular((26, 28, 30)[-ndim:], 2.0), Grid.regular((30, 30, 32)[-ndim:], 2.1)
    turn = rotation([math.radians(angle) for angle in degrees], ndim)
    truth = Affine.about(turn, torch.tensor([shift]), torch.zeros(1, ndim))
    back = truth.inverse()

    def body(points):
        scaled = points / torch.tensor([18.0, 12.0, 8.0][:ndim])
        knob = torch.tensor([11.0, 4.0, 2.0][:ndim])
        return torch.sigmoid(8 * (1 - scaled.norm(dim=-1))) + 1.5 * torch.exp(-(points - knob).square().sum(-1) / 20)

    fixed, moving = body(grids[0].points), body(back(grids[1].points))
    return Image(fixed[:, None], grids[0]), Image(moving[:, None], grids[1]), truth


def error(found, truth, ndim=3):
    corners = 12 * torch.eye(ndim)[None]
    return float((found(corners) - truth(corners)).norm(dim=-1).mean())


CASES = [((140.0, -35.0, 100.0), (5.0, -3.0, 4.0)), ((0.0, 170.0, 20.0), (0.0, 6.0, 1.0)), ((155.0,), (4.0, -3.0))]


@pytest.mark.parametrize(("degrees", "shift"), CASES)
def test_moments_find_a_large_rotation_that_nothing_else_finds(degrees, shift):
    """Mean error in mm, 12 mm from the center."""
    ndim = len(shift)
    fixed, moving, truth = turned(degrees, shift, ndim)
    assert error(found_start("com", fixed, moving), truth, ndim) > 10
    found = found_start("moments", fixed, moving)
    assert error(found, truth, ndim) < 2
    assert torch.linalg.det(found.matrix[0]) > 0
    result = register(fixed, moving, "rigid", initial="moments", progress=False)
    assert error(result.transform, truth, ndim) < 0.3


def test_com_aligns_the_centers_of_mass_and_identity_nothing():
    fixed, moving, _ = turned((0.0, 0.0, 0.0), (5.0, -3.0, 4.0))
    shift = found_start("com", fixed, moving)(torch.zeros(1, 1, 3))[0, 0]
    assert torch.allclose(shift, torch.tensor([5.0, -3.0, 4.0]), atol=0.3)
    for name in ("com", "identity"):
        result = register(fixed, moving, "rigid", initial=name, progress=False)
        assert torch.allclose(result.initial.matrix, found_start(name, fixed, moving).matrix, atol=1e-5)
    assert torch.equal(found_start("identity", fixed, moving).matrix[0], torch.eye(4))


def test_a_file_named_like_a_keyword_is_reached_by_its_path(tmp_path, monkeypatch):
    fixed, moving, _ = turned((0.0, 0.0, 0.0), (5.0, -3.0, 4.0))
    monkeypatch.chdir(tmp_path)
    write_transform(Affine.translation([4.0, 0.0, 0.0]), fixed.grid, "com.tfm")
    (tmp_path / "com.tfm").rename(tmp_path / "moments.tfm")
    for path in ("moments.tfm", tmp_path / "moments.tfm"):
        found = register(fixed, moving, "rigid", initial=path, progress=False).initial
        assert torch.allclose(found.matrix[0, :3, 3], torch.tensor([4.0, 0.0, 0.0]))
    with pytest.raises(InputError, match="com"):
        register(fixed, moving, "rigid", initial="./com", progress=False)
    with pytest.raises(MissingFileError, match="center"):
        register(fixed, moving, "rigid", initial="center", progress=False)
    with pytest.raises(InputTypeError, match="moments"):
        register(fixed, moving, "rigid", initial=3, progress=False)


def test_slices_start_in_their_plane():
    fixed, moving, truth = turned((155.0,), (4.0, -3.0), 2)

    def slice_of(image):
        shape = (1, *image.grid.shape)
        return Image(image.data.unsqueeze(2), Grid.regular(shape, float(image.grid.spacing[0, 0])))

    result = register(slice_of(fixed), slice_of(moving), "rigid", initial="moments", progress=False)
    corners = torch.cat([12 * torch.eye(2), torch.zeros(2, 1)], -1)[None]
    assert (result.transform(corners)[..., :2] - truth(corners[..., :2])).norm(dim=-1).mean() < 0.3


def test_an_image_without_content_is_refused():
    image = blob_image(Grid.regular((16, 16, 16)))
    with pytest.raises(InputError, match="constant"):
        register(image, Image(torch.zeros(1, 1, 16, 16, 16), image.grid), "rigid", initial="com", progress=False)
