"""Calibrate and measure the verdict on right and on broken pairs of real images; print what docs/verdict.md quotes.

python scripts/verdict.py register $LEARNREG_DATA -o FOLDER   # registers each pair once; can be interrupted
python scripts/verdict.py measure $LEARNREG_DATA -o FOLDER    # measures.csv
python scripts/verdict.py fit -o FOLDER                       # coefficients, from the calibration half
python scripts/verdict.py table -o FOLDER                     # rates on the held-out half
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy.optimize import minimize
from tqdm.auto import tqdm
from verdict_cases import HALVES, Case, all_cases, images, wrong_transform

import learnreg
from learnreg.errors import InputError
from learnreg.methods.base import Method
from learnreg.methods.measures import evidence
from learnreg.methods.verdicts import EVIDENCE, LARGEST, LINEAR, SMALLEST, judge
from learnreg.metrics import score
from learnreg.transforms import Displacement, Transform
from learnreg.transforms.affine import linear_through_landmarks
from learnreg.writing import write_atomically

MEASURES = (
    *(
        "finite",
        "similarity",
        "chance",
        "start",
        "information",
        "information_chance",
        "correlation",
        "outline",
        "outside",
    ),
    *("lost", "rotation", "handedness", "largest_scale", "smallest_scale", "shift", "nonlinear", "spread", "folding"),
    *("volume", "roughness", "cut"),
)
LINEAR_PART = "linear part"  # of a deformable registration: more linear maps for the calibration
RECOVERED = 0.36  # Dice of a turned pair that was turned back; right pairs have more, the others less than 0.3
FALSE_ALARMS = 0.01  # aimed at in the calibration half
RIDGE = 5e-3
FOLDS = 10
WARN = (0.3, 0.9)  # range of the doubt that warns
FAIL = 0.9  # least doubt that fails
TURNS = {
    "none": 1,
    "fast": 1,
    "affine": 2,
    "deformable": 8,
}  # how far apart its cases are registered, the slower the rarer


def register_all(data: Path, folder: Path) -> None:
    """Register each pair, and keep its displacement."""
    methods: dict[str, Method] = {}
    (folder / "fields").mkdir(parents=True, exist_ok=True)
    for case in tqdm(in_turns(all_cases(data), folder), desc="register"):
        file = folder / "fields" / f"{case.name}.npz"
        if file.exists():
            continue
        fixed, moving = images(case, data)
        began = time.perf_counter()
        try:
            field = _field(case, fixed, moving, methods)
            content: dict[str, np.ndarray] = {"field": field[0].numpy().astype(np.float32)}
        except InputError as error:
            content = {"refused": np.array(str(error))}
        content["seconds"] = np.array(time.perf_counter() - began)
        part = file.with_suffix(".part.npz")
        np.savez(part, **content)  # type: ignore[arg-type]
        part.rename(file)


def in_turns(cases: Sequence[Case], folder: Path) -> list[Case]:
    """Return the cases without a result, those of slow methods spread among the others."""
    left = [case for case in cases if not (folder / "fields" / f"{case.name}.npz").exists()]
    count = dict.fromkeys(TURNS, 0)
    turns = {}
    for case in left:
        count[case.method] += TURNS[case.method]
        turns[case.name] = count[case.method]
    return sorted(left, key=lambda case: turns[case.name])


def _field(case: Case, fixed: learnreg.Image, moving: learnreg.Image, methods: dict[str, Method]) -> torch.Tensor:
    if case.method == "none":
        return wrong_transform(fixed, moving, case.seed).displacement(fixed.grid)
    if case.method not in methods:
        methods[case.method] = learnreg.load_method(case.method)
    bare = [learnreg.Image(image.data, image.grid) for image in (fixed, moving)]  # a method must not see the labels
    return learnreg.register(bare[0], bare[1], methods[case.method], progress=False).sampled.field


def measure_all(data: Path, folder: Path) -> None:
    """Measure the registrations that are there and not yet in measures.csv, and add them to it."""
    table = folder / "measures.csv"
    rows: list[dict[str, object]] = [dict(row) for row in read_rows(table)] if table.exists() else []
    done, written = {row["name"] for row in rows}, time.monotonic()
    for case in tqdm(all_cases(data), desc="measure"):
        file = folder / "fields" / f"{case.name}.npz"
        linear = replace(case, name=f"{case.name}-linear", method=LINEAR_PART)
        wanted = [case, linear] if case.half == HALVES[0] and case.method in ("fast", "deformable") else [case]
        wanted = [one for one in wanted if one.name not in done]
        if not wanted or not file.exists():
            continue
        with np.load(file) as stored:
            rows += [_row(one, stored, data) for one in wanted]
        if time.monotonic() - written > 20:
            write_rows(rows, table)
            written = time.monotonic()
    write_rows(rows, table)


def _row(case: Case, stored: Mapping[str, np.ndarray], data: Path) -> dict[str, object]:
    """Return the row of measures.csv for a case."""
    row: dict[str, object] = dict(asdict(case))
    row |= {"seconds": round(float(stored["seconds"]), 3), "refused": int("refused" in stored)}
    return row | _measured(case, torch.from_numpy(stored["field"])[None], data) if "field" in stored else row


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read measures.csv."""
    with table.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_rows(rows: Sequence[Mapping[str, object]], table: Path) -> None:
    """Write measures.csv as a whole."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(table, write)


def _measured(case: Case, field: torch.Tensor, data: Path) -> dict[str, object]:
    fixed, moving = images(case, data)
    transform: Transform = Displacement(field, fixed.grid)
    if case.method == LINEAR_PART:
        points = fixed.grid.points.reshape(1, -1, fixed.ndim)
        transform = linear_through_landmarks(points, transform(points))
    result = learnreg.Registration(transform, fixed, moving)
    began = time.perf_counter()
    measures: dict[str, object] = {name: float(f"{value:.6g}") for name, value in evidence(result).items()}
    measures["seconds_of_measures"] = round(time.perf_counter() - began, 3)
    if fixed.labels is not None and moving.labels is not None and measures["finite"]:
        measures["dice"] = score(fixed, moving, result.sampled).row().get("dice", "")
    return measures


def is_good(row: Mapping[str, str]) -> bool:
    """Return whether a pair is right, or was turned and is turned back."""
    recovered = row["kind"] == "turned" and float(row.get("dice") or 0) > RECOVERED
    return row["kind"].startswith("good") or recovered


def class_of(row: Mapping[str, str]) -> str:
    """Return the class of a transform, as the verdict sees it."""
    return "deformable" if float(row["spread"]) > LINEAR else "linear"


def judged_rows(folder: Path) -> list[dict[str, str]]:
    """Return the pairs that were registered, and whose transforms are finite."""
    rows = read_rows(folder / "measures.csv")
    return [row for row in rows if row["refused"] == "0" and float(row["finite"])]


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Return the measures of a row."""
    return {name: float(row[name]) for name in MEASURES if row.get(name)}


def fit(folder: Path) -> None:
    """Fit the table of the rule to the calibration half, and write it into the package."""
    table: dict[str, object] = {}
    for kind in ("deformable", "linear"):
        rows = [row for row in judged_rows(folder) if row["half"] == HALVES[0] and class_of(row) == kind]
        broken = np.array([not is_good(row) for row in rows])
        values = np.array([[e.value(numbers(row)) for e in EVIDENCE.values()] for row in rows])
        held = np.empty(len(rows))  # the doubt of each pair by a model that was fitted without it
        for fold in range(FOLDS):
            own = np.arange(len(rows)) % FOLDS == fold
            held[own] = _doubt(values[own], *_model(values[~own], broken[~own]))
        warn = float(np.clip(np.quantile(held[~broken], 1 - FALSE_ALARMS), *WARN))
        mean, scale, weights, offset = _model(values, broken)
        evidences = {
            name: {"mean": round(float(m), 4), "scale": round(float(s), 4), "weight": round(float(w), 4)}
            for name, m, s, w in zip(EVIDENCE, mean, scale, weights, strict=True)
            if abs(w) >= 5e-5
        }
        fail = round(max(FAIL, (1 + warn) / 2), 3)
        table[kind] = {"offset": round(offset, 4), "warn": round(warn, 3), "fail": fail, "evidence": evidences}
        hits = (held[broken] >= warn).mean()
        print(f"{kind}: {(~broken).sum()} good, {broken.sum()} broken, warn at {warn:.3f}, hits {hits:.3f} in folds")
    head = "# Weights of the verdict's evidence, fitted by `scripts/verdict.py fit` to the calibration half.\n"
    path = Path(learnreg.__file__).parent / "methods" / "verdicts.yaml"
    path.write_text(head + yaml.safe_dump(table, sort_keys=False), encoding="utf-8")


def _model(values: np.ndarray, broken: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Fit a logistic model with a ridge, in which no evidence counts against its sense.

    Returns:
        Mean and scale of the evidence of right pairs, weights, and offset.
    """
    mean, scale = values[~broken].mean(0), values[~broken].std(0) + 0.02
    x = ((values - mean) / scale).clip(-SMALLEST, LARGEST)
    share = np.where(broken, 0.5 / broken.sum(), 0.5 / (~broken).sum())  # both have the same total weight

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        score = x @ parameters[:-1] + parameters[-1]
        signed = np.where(broken, score, -score)
        slope = share * np.where(broken, -1, 1) / (1 + np.exp(signed))
        gradient = np.append(x.T @ slope + 2 * RIDGE * parameters[:-1], slope.sum())
        return float((share * np.logaddexp(0, -signed)).sum() + RIDGE * (parameters[:-1] ** 2).sum()), gradient

    bounds = [(None, 0.0) if e.more_is_better else (0.0, None) for e in EVIDENCE.values()]
    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)]).x
    return mean, scale, found[:-1], float(found[-1])


def _doubt(values: np.ndarray, mean: np.ndarray, scale: np.ndarray, weights: np.ndarray, offset: float) -> np.ndarray:
    x = ((values - mean) / scale).clip(-SMALLEST, LARGEST)
    return 1 / (1 + np.exp(-(x @ weights + offset)))


def table(folder: Path) -> None:
    """Print the rates per kind on the held-out half."""
    rows = [row for row in read_rows(folder / "measures.csv") if row["half"] == HALVES[1]]
    found: dict[tuple[str, str], list[str]] = {}
    missed = []
    for row in rows:
        level = "refused" if row["refused"] == "1" else judge(numbers(row)).level
        kind = "turned, recovered" if row["kind"] == "turned" and is_good(row) else row["kind"]
        found.setdefault((kind, row["method"]), []).append(level)
        if (level == "PASS") != is_good(row):
            missed.append((row["name"], row["method"], row["fixed"], row["moving"], level))
    groups: dict[str, list[str]] = {}
    for (kind, method), levels in sorted(found.items()):
        side = "good" if kind.startswith("good") or "recovered" in kind else "broken"
        for name in (kind, f"all {side}, `{method}`", f"all {side}"):
            groups.setdefault(name, []).extend(levels)
    print("| pairs | n | PASS | WARN | FAIL | refused | flagged |\n|---|---|---|---|---|---|---|")
    for name, levels in sorted(groups.items(), key=lambda item: item[0].startswith("all")):
        counts = [levels.count(level) for level in ("PASS", "WARN", "FAIL", "refused")]
        flagged = 100 * (1 - counts[0] / len(levels))
        print(f"| {name} | {len(levels)} | {' | '.join(map(str, counts))} | {flagged:.1f} % |")
    for line in missed:
        print("wrong:", *line)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["register", "measure", "fit", "table"])
    parser.add_argument("data", type=Path, nargs="?", help="LEARNREG_DATA")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.step == "register":
        register_all(options.data, options.output)
    elif options.step == "measure":
        measure_all(options.data, options.output)
    elif options.step == "fit":
        fit(options.output)
    else:
        table(options.output)


if __name__ == "__main__":
    main()
