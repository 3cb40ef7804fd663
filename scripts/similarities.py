"""Compare similarities in one solver: the deformable stage of `multimodal`, from one affine start.

python scripts/similarities.py $LEARNREG_DATA [--groups templates ...] [--similarities mind ...] [--weights 0.3 1 3]

Pairs are for tuning: templates of two contrasts that are deformed by a known flow and turned, crops of the hippocampus
files 101-112 with an inverted contrast, and brains of different people. A similarity has its own scale, so each takes
several weights of the diffusion penalty, given as multiples of the preset's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from starts import pairs
from tqdm.auto import tqdm
from universal import Case, labelled, template_case

import learnreg
from learnreg.methods import Method, load_method

WEIGHT = 0.1  # of the diffusion penalty in the preset
AFFINE = "defaults: [/method/multimodal@_here_, _self_]\nstages: {deformation: null}\n"
DEFORMABLE = """defaults:
  - /method/multimodal@_here_
  - override /objective/similarity@stages.deformation.objective.similarity: SIMILARITY
  - _self_
stages:
  center: null
  rotation: null
  rigid: null
  affine: null
  deformation: {objective: {penalties: {diffusion: {weight: WEIGHT}}}}
"""


def cases(data: Path, group: str, count: int) -> Iterator[Case]:
    """Yield the cases of a group."""
    if group == "templates":
        for contrast in ("T2", "PD"):
            for seed in range(11, 11 + count):  # scripts/universal.py reports 1 and 2
                yield template_case(data, contrast, seed)
        return
    for fixed, moving in pairs(data, "brain" if group == "brains" else "hippocampus", count):
        if group == "inverted":
            moving = moving.with_data(moving.data.max() - moving.data)
        yield labelled({"inverted": "inverted hippocampus, Dice", "brains": "brains, Dice"}[group], fixed, moving, "")


def method(text: str) -> Method:
    """Load the text of a method file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "method.yaml"
        file.write_text(text)
        return load_method(str(file))


def main() -> None:
    """Print a row per group and similarity: the measure at each weight, and the CPU seconds of the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--groups", nargs="+", default=["templates", "inverted", "brains"])
    parser.add_argument("--similarities", nargs="+", default=["mind", "mutual_information", "universal"])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.3, 1.0, 3.0])
    parser.add_argument("--pairs", type=int, default=2, help="per group")
    options = parser.parse_args()
    torch.set_num_threads(1)
    affine = method(AFFINE)
    stages = {
        (name, weight): method(DEFORMABLE.replace("SIMILARITY", name).replace("WEIGHT", str(WEIGHT * weight)))
        for name in options.similarities
        for weight in options.weights
    }
    print(f"| pairs | affine | similarity | {' | '.join(f'{w:g}' for w in options.weights)} | CPU s |")
    print("|---" * (len(options.weights) + 4) + "|")
    for group in options.groups:
        before: dict[str, list[float]] = {}
        after: dict[tuple[str, str, float], list[float]] = {}
        seconds: dict[tuple[str, str], list[float]] = {}
        for case in tqdm(list(cases(options.data, group, options.pairs)), desc=group, leave=False):
            start = learnreg.register(case.fixed, case.moving, affine, progress=False).transform
            before.setdefault(case.group, []).append(case.measure(start))
            for (name, weight), stage in stages.items():
                began = time.process_time()
                found = learnreg.register(case.fixed, case.moving, stage, initial=start, progress=False)
                seconds.setdefault((case.group, name), []).append(time.process_time() - began)
                after.setdefault((case.group, name, weight), []).append(case.measure(found.transform))
        for (kind, name), times in seconds.items():
            values = [torch.tensor(after[kind, name, weight]).mean() for weight in options.weights]
            cells = " | ".join(f"{value:.3f}" for value in values)
            start_value = torch.tensor(before[kind]).mean()
            print(
                f"| {kind} | {start_value:.3f} | `{name}` | {cells} | {torch.tensor(times).median():.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
