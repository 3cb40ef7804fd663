"""Grids of several orientations, smooth test images, and the folder of real ones."""

import os
from pathlib import Path

import pytest
import torch

from learnreg.grid import Grid
from learnreg.image import Image

torch.set_num_threads(1)  # tiny volumes are far slower with threads

OBLIQUE = torch.linalg.qr(torch.tensor([[0.9, 0.3, -0.2], [-0.25, 0.95, 0.1], [0.2, -0.1, 0.97]], dtype=torch.float64))[
    0
]
DIRECTIONS = {
    "LPS": torch.eye(3, dtype=torch.float64),
    "RAS": torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)),
    "oblique": OBLIQUE,
    "permuted": torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64),
}


def make_grid(name: str = "LPS", shape=(14, 17, 20), spacing=(1.0, 1.5, 2.5), dtype=torch.float64, origin=None) -> Grid:
    """An anisotropic grid with three unequal sizes."""
    return Grid.regular(shape, spacing, origin, DIRECTIONS[name], dtype=dtype)


def smooth_values(points: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    """A smooth function of physical points ``(B, *P, D)``, so an image of it exists on any grid."""
    x = points / 9.0
    wave = torch.sin(x[..., 0] * 1.3 + shift) * torch.cos(x[..., 1] + 0.4)
    if points.shape[-1] == 3:
        wave = wave + 0.5 * torch.sin(x[..., 2] * 1.1 - 0.7) * torch.cos(x[..., 0])
    return wave


def smooth_image(grid: Grid, shift: float = 0.0) -> Image:
    return Image(smooth_values(grid.points, shift)[:, None], grid)


def blob_image(grid: Grid, center=(0.0, 0.0, 0.0), radii=(9.0, 7.0, 6.0), sharpness: float = 1.0) -> Image:
    """An ellipsoid with soft borders and two ellipsoids inside, intensities in [0, 1], labels 1 and 2."""
    ndim = grid.ndim
    center, radii = torch.tensor(center[:ndim], dtype=grid.dtype), torch.tensor(radii[:ndim], dtype=grid.dtype)
    distance = ((grid.points - center) / radii).norm(dim=-1)
    inner = ((grid.points - center - radii * 0.3) / (radii * 0.45)).norm(dim=-1)
    data = torch.sigmoid(6 * sharpness * (1 - distance)) * 0.6 + 0.4 * torch.sigmoid(6 * sharpness * (1 - inner))
    labels = (distance < 1).long() + ((inner < 1) & (distance < 1)).long()
    return Image(data[:, None], grid, None, labels[:, None])


@pytest.fixture(params=sorted(DIRECTIONS))
def grid(request) -> Grid:
    return make_grid(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("LEARNREG_DATA")
    if not folder:
        pytest.skip("LEARNREG_DATA is not set: it names the folder with real images")
    return Path(folder)
