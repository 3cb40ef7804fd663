"""Demons: forces from the difference of intensities, a field composed of smooth steps."""

from __future__ import annotations

from common import arguments, brain, deformation, moved

from learnreg.optimization import DemonsStage, run_stages


def main(given: list[str] | None = None) -> tuple[float, float]:
    """Run the example."""
    options = arguments(__doc__, given)
    image = brain(options.ndim, options.spacing)
    problem = moved(image, deformation(image))
    stage = DemonsStage("symmetric", factors=(4, 2, 1), iterations=(100, 80, 40), fluid=1.0, elastic=0.8)
    found = run_stages([stage], problem.fixed, problem.moving)
    return problem.report(f"demons_{options.ndim}d", found.transform, options.output)


if __name__ == "__main__":
    main()
