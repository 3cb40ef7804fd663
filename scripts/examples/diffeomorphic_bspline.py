"""A diffeomorphism whose velocity is made of B-splines: smooth, without folds, with an exact inverse."""

from __future__ import annotations

from functools import partial

from common import arguments, brain, deformation, moved

from learnreg.metrics import folding_fraction
from learnreg.objective import Objective, Penalty
from learnreg.optimization import BSplineParametrization, FieldStage, run_stages
from learnreg.regularization import Diffusion
from learnreg.similarity import LNCC


def main(given: list[str] | None = None) -> tuple[float, float]:
    """Run the example."""
    options = arguments(__doc__, given)
    image = brain(options.ndim, options.spacing)
    problem = moved(image, deformation(image, magnitude=10.0))
    velocity = partial(BSplineParametrization, kind="velocity", spacing=4)
    objective = Objective(LNCC(9), {"diffusion": Penalty(Diffusion(), 0.1)})
    stage = FieldStage(objective, velocity, factors=(4, 2, 1), iterations=(80, 60, 30), learning_rate=0.5)
    transform = run_stages([stage], problem.fixed, problem.moving).transform
    grid = problem.fixed.grid
    there_and_back = transform.inverse()(transform.map_grid(grid)) - grid.points
    folds = 100 * float(folding_fraction(transform.displacement(grid), grid))
    print(f"folds: {folds:.3f} %; there and back: {there_and_back.norm(dim=-1).mean():.3f} mm off")
    return problem.report(f"diffeomorphic_bspline_{options.ndim}d", transform, options.output)


if __name__ == "__main__":
    main()
