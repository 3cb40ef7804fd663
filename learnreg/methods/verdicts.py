"""The verdict on a registration: PASS, WARN or FAIL, with reasons in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from learnreg.errors import InputError
from learnreg.methods.base import Registration
from learnreg.methods.measures import evidence

Level = Literal["PASS", "WARN", "FAIL"]
Measures = Mapping[str, float]
LEVELS: tuple[Level, ...] = ("PASS", "WARN", "FAIL")
SMALLEST, LARGEST = 2.0, 6.0  # standard deviations of right pairs that one evidence counts at most, for and against
LINEAR = 1e-3  # a map whose log Jacobian determinant varies less is taken as linear
MENTIONED = 3  # reasons that are given at most


@dataclass(frozen=True)
class Verdict:
    """Whether a registration can be trusted, without any truth.

    Args:
        level: ``"PASS"``; ``"WARN"``: look at it before you use it; ``"FAIL"``: it is most likely wrong.
        reasons: Why it is not ``"PASS"``, the weightiest first.
        measures: What was measured, see :func:`learnreg.methods.evidence`; ``"doubt"`` is the combined evidence, the
            probability among the pairs of the calibration that the registration is broken.

    Example:
        >>> print(Verdict("WARN", ("18 % of the moving image lies outside",)))
        WARN: 18 % of the moving image lies outside
    """

    level: Level
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.level + (f": {'; '.join(self.reasons)}" if self.reasons else "")


@dataclass(frozen=True)
class Evidence:
    """A number of the rule, from the measures, and how it is told.

    Args:
        value: The number, from the measures.
        sentence: Text of a reason.
        more_is_better: Whether high numbers speak for the registration.
    """

    value: Callable[[Measures], float]
    sentence: Callable[[Measures], str]
    more_is_better: bool = False


def _over(m: Measures, name: str, reference: str, least: float) -> float:
    """Return the log of how much a similarity exceeds a reference."""
    return math.log((max(m[name], 0.0) + least) / (max(m[reference], 0.0) + least))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


EVIDENCE: dict[str, Evidence] = {
    "similarity": Evidence(
        lambda m: math.log(m["similarity"] + 0.02),
        lambda m: f"the images agree little: local similarity {m['similarity']:.2f} of 1",
        more_is_better=True,
    ),
    "over_chance": Evidence(
        lambda m: _over(m, "similarity", "chance", 0.02),
        lambda m: (
            "the images agree hardly better than with one of them mirrored "
            f"({m['similarity']:.2f} against {m['chance']:.2f})"
        ),
        more_is_better=True,
    ),
    "information": Evidence(
        lambda m: math.log(max(m["information"], 0.0) + 0.01),
        lambda m: f"the images share little information ({m['information']:.3f})",
        more_is_better=True,
    ),
    "information_over_chance": Evidence(
        lambda m: _over(m, "information", "information_chance", 0.01),
        lambda m: (
            "the images share hardly more information than with one of them mirrored "
            f"({m['information']:.3f} against {m['information_chance']:.3f})"
        ),
        more_is_better=True,
    ),
    "correlation": Evidence(
        lambda m: m["correlation"],
        lambda m: f"intensities are hardly related: correlation {m['correlation']:.2f}",
        more_is_better=True,
    ),
    "outline": Evidence(
        lambda m: m["outline"],
        lambda m: f"the outlines overlap by only {_percent(m['outline'])} (Dice)",
        more_is_better=True,
    ),
    "outside": Evidence(
        lambda m: m["outside"],
        lambda m: f"{_percent(m['outside'])} of the fixed image maps outside of the moving image",
    ),
    "lost": Evidence(lambda m: m["lost"], lambda m: f"{_percent(m['lost'])} of the moving image lies outside"),
    "rotation": Evidence(lambda m: m["rotation"] / 30, lambda m: f"turned by {m['rotation']:.0f} degrees"),
    "stretched": Evidence(
        lambda m: abs(math.log(max(m["largest_scale"], 1e-3))),
        lambda m: f"scaled by {m['largest_scale']:.2f} along one direction: check the spacing of both images",
    ),
    "squeezed": Evidence(
        lambda m: abs(math.log(max(m["smallest_scale"], 1e-3))),
        lambda m: f"scaled by {m['smallest_scale']:.2f} along one direction: check the spacing of both images",
    ),
    "shift": Evidence(
        lambda m: m["shift"], lambda m: f"the centers of both contents are {_percent(m['shift'])} of a radius apart"
    ),
    "nonlinear": Evidence(
        lambda m: m["nonlinear"], lambda m: f"strongly deformed: by {_percent(m['nonlinear'])} of the radius"
    ),
    "spread": Evidence(
        lambda m: m["spread"],
        lambda m: f"volumes change unevenly: log Jacobian determinant varies by {m['spread']:.2f}",
    ),
    "folding": Evidence(
        lambda m: math.log(m["folding"] + 1e-3), lambda m: f"{100 * m['folding']:.2g} % of the voxels fold"
    ),
    "volume": Evidence(
        lambda m: abs(math.log(max(m["volume"], 1e-3))),
        lambda m: f"the content of the moving image has {m['volume']:.2f} times the volume: with skull and without?",
    ),
    "roughness": Evidence(lambda m: m["roughness"], lambda m: "an image is rougher than images are: noise?"),
    "cut": Evidence(lambda m: m["cut"], lambda m: "the content of an image ends abruptly: is it truncated?"),
}
BOUNDS: dict[str, Callable[[Measures], bool]] = {  # any of them fails
    "the map is a reflection": lambda m: m["handedness"] < 0,
    "the images do not overlap": lambda m: m["outside"] > 0.98,
    "an image looks like noise": lambda m: m["roughness"] > 0.7,  # real images: up to 0.2
    "more than 5 % of the voxels fold": lambda m: m["folding"] > 0.05,
    "the map collapses the image": lambda m: m["smallest_scale"] < 0.05 or m["largest_scale"] > 20,
}

LARGEST_RATIO = 2.2  # of the contents; of right pairs up to 1.56, a full and an empty lung


@cache
def calibration() -> dict[str, Any]:
    """Return the table of the rule: per class of transform, mean, scale and weight of each evidence, and limits.

    It was fitted by ``scripts/verdict.py``; see ``docs/verdict.md``.
    """
    text = files("learnreg.methods").joinpath("verdicts.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table


def verdict(result: Registration) -> Verdict:
    """Judge a registration without labels or landmarks, in a fraction of its time.

    Measures of :func:`learnreg.methods.evidence` are weighed by a logistic rule that was calibrated on right and on
    broken pairs of real images. Rates of hits and false alarms are in ``docs/verdict.md``. A flip of a symmetric organ
    cannot be seen.

    Args:
        result: The registration of one pair.

    Returns:
        Level and reasons.

    Example:
        >>> grid = learnreg.Grid.regular((32, 32))
        >>> image = learnreg.Image((-(grid.points**2).sum(-1) / 60).exp()[:, None], grid)
        >>> noise = image.with_data(torch.rand(image.data.shape, generator=torch.Generator().manual_seed(0)))
        >>> verdict(learnreg.Registration(learnreg.Affine.identity(2), image, noise)).level
        'FAIL'
    """
    try:
        measures = evidence(result)
    except InputError as error:
        return Verdict("FAIL", (str(error).split(";")[0].rstrip("."),))
    return judge(measures)


def judge(measures: Measures) -> Verdict:
    """Return the verdict on measures of :func:`learnreg.methods.evidence`."""
    if not measures["finite"]:
        return Verdict("FAIL", ("the transform has values that are not finite",), dict(measures))
    wrong = tuple(reason for reason, broken in BOUNDS.items() if broken(measures))
    ratio = measures["contents"]
    doubtful = not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO
    table = calibration()["deformable" if measures["spread"] > LINEAR else "linear"]
    parts = {
        name: row["weight"]
        * max(-SMALLEST, min(LARGEST, (EVIDENCE[name].value(measures) - row["mean"]) / row["scale"]))
        for name, row in table["evidence"].items()
    }
    score = table["offset"] + sum(parts.values())
    doubt = 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))
    known = {**measures, "doubt": doubt}
    if wrong or doubt >= table["fail"]:
        level: Level = "FAIL"
    elif doubt >= table["warn"] or doubtful:
        level = "WARN"
    else:
        return Verdict("PASS", (), known)
    if doubtful:
        wrong += (
            f"the content of the moving image has {ratio:.2f} times the volume of that of the fixed image: with skull "
            "and without, or a part of the other?",
        )
    weighty = sorted((name for name in parts if parts[name] > 0), key=lambda name: -parts[name])
    said = [EVIDENCE[name].sentence(measures) for name in weighty[: MENTIONED - len(wrong)]]
    return Verdict(level, (*wrong, *said), known)


def exit_status(level: str, *, strict: bool) -> int:
    """Return the exit status of a command after a verdict: 1 for ``"FAIL"`` if ``strict``, else 0.

    Example:
        >>> exit_status("FAIL", strict=True), exit_status("WARN", strict=True), exit_status("FAIL", strict=False)
        (1, 0, 0)
    """
    return int(strict and level == "FAIL")
