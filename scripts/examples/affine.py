"""Affine registration in 2-D and 3-D: rotation, scaling, shear and translation by descent on NCC."""

from __future__ import annotations

import torch
from common import arguments, brain, moved

from learnreg.objective import Objective
from learnreg.optimization import CenterOfMass, LinearStage, run_stages
from learnreg.similarity import NCC
from learnreg.transforms import Affine


def main(given: list[str] | None = None) -> tuple[float, float]:
    """Run the example."""
    options = arguments(__doc__, given)
    image = brain(options.ndim, options.spacing)
    generator = torch.linspace(-0.12, 0.15, options.ndim**2).reshape(1, options.ndim, options.ndim)
    shift = torch.tensor([[8.0, -12.0, 5.0]])[:, : options.ndim]
    problem = moved(image, Affine.about(torch.matrix_exp(generator), shift, image.grid.center))
    stage = LinearStage(Objective(NCC()), "affine", factors=(4, 2, 1), iterations=(80, 60, 30))
    found = run_stages([CenterOfMass(), stage], problem.fixed, problem.moving)
    return problem.report(f"affine_{options.ndim}d", found.transform, options.output)


if __name__ == "__main__":
    main()
