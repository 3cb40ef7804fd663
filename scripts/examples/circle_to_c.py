"""A disk becomes a C: a deformation far larger than its smoothness, by a velocity that changes in time."""

from __future__ import annotations

from functools import partial

import torch
from common import arguments

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.metrics import folding_fraction
from learnreg.objective import Objective, Penalty
from learnreg.optimization import FieldStage, TimeVaryingParametrization, run_stages
from learnreg.regularization import Diffusion
from learnreg.reporting.figures import registration_figure
from learnreg.similarity import MSE
from learnreg.warping import warp


def disk_and_c(grid: Grid) -> tuple[Image, Image]:
    """A disk of radius 30 mm, and a C of the same radius, in a field of view of 128 mm; soft borders."""
    x, y = grid.points.unbind(-1)
    radius = (x**2 + y**2).sqrt()
    side = float(grid.spacing.min())
    disk = torch.sigmoid((30 - radius) / side)
    mouth = torch.sigmoid((x - 2) / side) * torch.sigmoid((7 - y.abs()) / side)
    hole = torch.maximum(torch.sigmoid((12 - radius) / side), mouth)
    return Image(disk[:, None], grid), Image((disk * (1 - hole))[:, None], grid)


def main(given: list[str] | None = None) -> tuple[float, float]:
    """Run the example; returns the share of pixels that are wrong, before and after."""
    options = arguments(__doc__, given, spacing=1.0)
    size = round(128 / options.spacing)
    moving, fixed = disk_and_c(Grid.regular((size, size), options.spacing))
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.01)})
    flow = partial(TimeVaryingParametrization, intervals=6, coarsening=2)
    stage = FieldStage(objective, flow, factors=(4, 2, 1), iterations=(150, 150, 80), learning_rate=0.4, tolerance=0)
    transform = run_stages([stage], fixed, moving).transform
    warped = warp(moving, transform, fixed.grid)
    before, after = (float(((image.data > 0.5) != (fixed.data > 0.5)).float().mean()) for image in (moving, warped))
    options.output.mkdir(parents=True, exist_ok=True)
    title = f"circle to C: {100 * before:.1f} to {100 * after:.2f} % of the pixels wrong"
    figure = registration_figure(fixed, moving, transform, title=title)
    figure.savefig(options.output / "circle_to_c.png", dpi=90)
    folds = 100 * float(folding_fraction(transform.displacement(fixed.grid), fixed.grid))
    print(f"{title}; folds {folds:.3f} %; {options.output / 'circle_to_c.png'}")
    return before, after


if __name__ == "__main__":
    main()
