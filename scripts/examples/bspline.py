"""Free-form deformation in 2-D and 3-D: control points of B-splines, or of Wendland kernels (``--wendland``)."""

from __future__ import annotations

import sys
from functools import partial

from common import arguments, brain, deformation, moved

from learnreg.objective import Objective, Penalty
from learnreg.optimization import BSplineParametrization, FieldStage, KernelParametrization, run_stages
from learnreg.regularization import Bending
from learnreg.similarity import MSE


def main(given: list[str] | None = None) -> tuple[float, float]:
    """Run the example."""
    given = list(sys.argv[1:] if given is None else given)
    wendland = "--wendland" in given
    options = arguments(__doc__, [word for word in given if word != "--wendland"])
    image = brain(options.ndim, options.spacing)
    problem = moved(image, deformation(image))
    splines = partial(KernelParametrization if wendland else BSplineParametrization, spacing=4)
    objective = Objective(MSE(), {"bending": Penalty(Bending(), 0.01)})
    stage = FieldStage(objective, splines, factors=(4, 2, 1), iterations=(80, 60, 30), learning_rate=0.5)
    found = run_stages([stage], problem.fixed, problem.moving)
    name = "wendland" if wendland else "bspline"
    return problem.report(f"{name}_{options.ndim}d", found.transform, options.output)


if __name__ == "__main__":
    main()
