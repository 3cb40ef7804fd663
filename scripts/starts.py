"""Measure presets from several starts: their own, the principal axes, and a trained model for any pair.

python scripts/starts.py $LEARNREG_DATA [--checkpoint NAME] [--degrees 0 15 30 45] [--groups hippocampus brain]

Pairs are those that tuned the presets. A pair is turned by its header. CPU seconds include the start;
columns are interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from universal import DEGREES, dice, moved

import learnreg
from learnreg.image import Image
from learnreg.methods import Method, load_method
from learnreg.methods.api import choose_method
from learnreg.transforms import Affine, Transform, chain

Pair = tuple[Image, Image]
PRESETS = {"hippocampus": ("fast", "deformable"), "brain": ("brain",)}


def pairs(data: Path, group: str, count: int) -> list[Pair]:
    """Return neighbors of hippocampus files 101-112, or brains of different people."""
    folder = data / group
    if group == "hippocampus":
        files = sorted((folder / "images").glob("*.nii.gz"))[100:112]
    else:
        files = [folder / "images" / f"{name}.nii.gz" for name in ("1000", "1001", "1007", "1113")]
    images = [learnreg.read_image(file, labels=folder / "labels" / file.name) for file in files[: 2 * count]]
    return list(zip(images[::2], images[1::2], strict=True))


def turned(image: Image, degrees: float) -> Image:
    """Turn an image about its center, in its header, about the axis of ``scripts/universal.py``."""
    whole = torch.tensor(DEGREES).norm().item()
    return moved(image, tuple(degrees * d / whole for d in DEGREES), (0.0, 0.0, 0.0)) if degrees else image


def linear_part(model: Method, fixed: Image, moving: Image) -> Transform:
    """Return the answer of a model without its flow."""
    answer = model(fixed, moving).transform
    return chain(*(part for part in getattr(answer, "transforms", (answer,)) if isinstance(part, Affine)))


def main() -> None:
    """Print a row per preset and angle: Dice and CPU seconds of each start, the means over the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--checkpoint", default="universal", help="a model of volumes")
    parser.add_argument("--degrees", type=float, nargs="+", default=[0, 15, 30, 45])
    parser.add_argument("--groups", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--pairs", type=int, default=6, help="at most, per group")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = choose_method(checkpoint=options.checkpoint)
    starts: dict[str, Callable[[Image, Image], object]] = {
        "its own": lambda *_: None,
        "moments": lambda *_: "moments",
        "model, affine part": partial(linear_part, model),
        "model": lambda fixed, moving: model(fixed, moving).transform,
    }
    print(f"| group | preset | degrees | model alone | {' | '.join(starts)} |")
    print("|---" * (len(starts) + 4) + "|")
    for group in options.groups:
        given = pairs(options.data, group, options.pairs)
        for preset in PRESETS[group]:
            for degrees in options.degrees:
                print(row(group, preset, degrees, given, starts), flush=True)


def row(
    group: str, preset: str, degrees: float, given: list[Pair], starts: dict[str, Callable[[Image, Image], object]]
) -> str:
    """Measure a preset at one angle, and return its row."""
    method = load_method(preset)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    alone = []
    for fixed, moving in tqdm(given, desc=f"{preset} {degrees:g}", leave=False):
        seen = turned(moving, degrees)
        for name, start in starts.items():
            began = time.process_time()
            initial = start(fixed, seen)
            result = learnreg.register(fixed, seen, method, initial=initial, progress=False)  # type: ignore[arg-type]
            seconds = time.process_time() - began
            found[name].append((dice(fixed, seen, result.transform), seconds))
            if name == "model" and isinstance(initial, Transform):
                alone.append(dice(fixed, seen, initial))
    cells = []
    for values in found.values():
        scores, times = torch.tensor(values).T
        cells.append(f"{scores.mean():.3f}, {times.median():.1f} s")
    return f"| {group} | `{preset}` | {degrees:g} | {torch.tensor(alone).mean():.3f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
