"""What the examples share: a brain that was moved by a known transform, and how to tell how well it came back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from learnreg.data.mni152 import mni152_template
from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.data.synthesis import random_velocity
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.reporting.figures import registration_figure
from learnreg.transforms import Affine, Transform
from learnreg.warping import warp


@dataclass(frozen=True, eq=False)
class Problem:
    """A pair whose true transform is known; the error counts inside the brain."""

    fixed: Image
    moving: Image
    truth: Transform

    def error(self, transform: Transform) -> float:
        """Mean distance in mm to where the truth takes the points of the brain."""
        grid = self.fixed.grid
        inside = self.fixed.data[:, 0] > 0.1
        return float((transform.map_grid(grid) - self.truth.map_grid(grid)).norm(dim=-1)[inside].mean())

    def report(self, name: str, transform: Transform, output: Path) -> tuple[float, float]:
        """Print the error before and after, save a picture."""
        before, after = self.error(Affine.identity(self.fixed.ndim)), self.error(transform)
        output.mkdir(parents=True, exist_ok=True)
        figure = registration_figure(
            self.fixed, self.moving, transform, title=f"{name}: {before:.2f} to {after:.2f} mm"
        )
        figure.savefig(output / f"{name}.png", dpi=90)
        print(f"{name}: error {before:.2f} mm before, {after:.2f} mm after; {output / f'{name}.png'}")
        return before, after


def arguments(description: str | None, given: list[str] | None, *, spacing: float = 2.0) -> argparse.Namespace:
    """``--ndim``, ``--spacing`` and ``--output``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--ndim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--spacing", type=float, default=spacing, help="mm")
    parser.add_argument("--output", type=Path, default=Path("examples"))
    options = parser.parse_args(given)
    torch.manual_seed(0)
    return options


def brain(ndim: int, spacing: float) -> Image:
    """The MNI152 brain, or the axial slice in its middle, intensities in [0, 1]."""
    template = mni152_template()
    space = ModelSpace(spacing)
    head = normalized(space.place(Image(template.data, template.grid)))
    if ndim == 3:
        return head
    grid = head.grid
    plane = Grid.regular(grid.shape[1:], spacing)
    return Image(head.data[:, :, grid.shape[0] // 2], plane)


def moved(image: Image, truth: Transform) -> Problem:
    """``image`` as fixed, and the image that ``truth`` takes it to as moving."""
    return Problem(image, warp(image, truth.inverse(), image.grid), truth)


def deformation(image: Image, magnitude: float = 6.0, smoothness: float = 15.0) -> Transform:
    """A random diffeomorphism, mm."""
    generator = torch.Generator().manual_seed(1)
    return random_velocity(image.grid, magnitude=magnitude, smoothness=smoothness, generator=generator)
