"""Draw Dice against CPU seconds: what one pass of a trained model saves, and what classical steps add to it.

python scripts/amortization.py $LEARNREG_DATA [--checkpoint NAME] [--pairs 6] [-o docs/amortization.png]

One thread, on images that neither training nor tuning used: neighbors of the hippocampus files 161-200, and brains of
different people, as they are: docs/benchmarks.md has the padded hippocampi that others' tools expect. Those take part
where they are installed (extra: peers). CPU seconds are medians over the pairs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path

import matplotlib as mpl
import peers
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from tqdm.auto import tqdm
from universal import brains, hippocampus_cases

from learnreg.image import Image
from learnreg.methods import Method, load_method
from learnreg.methods.api import choose_method
from learnreg.methods.evaluation import START, Case, Row, evaluate

PRESETS = {"hippocampus": ("affine", "fast", "deformable"), "brains": ("affine", "fast", "brain")}
STEPS = (10, 30, 100)
MODEL, CLASSICAL, OTHERS = "tab:blue", "tab:orange", "tab:gray"
Point = tuple[float, float]  # CPU s, Dice


def cases(data: Path, group: str, count: int) -> Iterator[tuple[Image, Image]]:
    """Yield pairs of a group."""
    if group == "brains":
        yield from brains(data)[:count]
    else:
        yield from ((case.fixed, case.moving) for case in islice(hippocampus_cases(data), count))


def models(checkpoint: str) -> dict[str, Method]:
    """Return the passes of a model, without and with classical steps."""
    refined = {f"+ {steps} steps": choose_method(checkpoint=checkpoint, refine=steps) for steps in STEPS}
    return {"one pass": choose_method(checkpoint=checkpoint)} | refined


def others() -> dict[str, Method]:
    """Return the installed tools of others, in their default settings."""
    found: dict[str, Method] = {}
    if find_spec("picsl_greedy"):
        found["greedy"] = peers.Greedy("100x50x10", "2vox 1vox", 1)
    if find_spec("ants"):
        found["ANTs SyN"] = peers.Ants(1)
    for name in {"greedy", "ANTs SyN"} - set(found):
        print(f"{name} is left out: pip install -e '.[peers]'")
    return found


def summary(rows: list[Row]) -> dict[str, Point]:
    """Return the median CPU seconds and the mean Dice of each method."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(str(row["method"]), []).append(row)
    return {
        name: (
            statistics.median(float(row["cpu_seconds"]) for row in own),
            statistics.fmean(float(row["dice"]) for row in own),
        )
        for name, own in by_method.items()
    }


def draw(axes: Axes, title: str, points: dict[str, Point], checkpoint: str) -> None:
    """Draw one group; the passes of the model are one line, and the start is a dashed line."""
    points = dict(points)
    axes.axhline(points.pop(START)[1], color="0.6", linestyle="--", linewidth=1, label="identity")
    line = [points[name] for name in points if name == "one pass" or name.startswith("+")]
    axes.plot(*zip(*line, strict=True), "o-", color=MODEL, label=checkpoint)
    for known, color, label in (
        (True, CLASSICAL, "classical presets"),
        (False, OTHERS, "tools of others"),
    ):
        own = {name: p for name, p in points.items() if p not in line and (name in PRESETS[title]) == known}
        if own:
            axes.plot(*zip(*own.values(), strict=True), "s", color=color, label=label)
    seconds = [s for s, _ in points.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 1.5, max(seconds) * 3)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set(title=title, xlabel="CPU seconds a pair")
    axes.grid(alpha=0.3)
    name_points(axes, points)


def name_points(axes: Axes, points: dict[str, Point]) -> None:
    """Write the name of each point beside it, where it covers neither a point nor another name."""
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(list(points.values()))]
    for name, point in points.items():
        for right, up in product((True, False), (-9, 4, -20, 15, -31, 26)):
            place, side = (6 if right else -6, up), "left" if right else "right"
            text = axes.annotate(name, point, place, textcoords="offset points", fontsize=8, ha=side)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
        else:  # a name on top of another is better than none
            axes.annotate(name, point, (6, -9), textcoords="offset points", fontsize=8)


def main() -> None:
    """Print a table per group, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--checkpoint", default="universal", help="file or name of a model of volumes")
    parser.add_argument("--pairs", type=int, default=6, help="at most, per group")
    parser.add_argument("--groups", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("-o", "--output", type=Path, default=Path("amortization.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    passes, tools = models(options.checkpoint), others()
    figure = Figure(figsize=(5 * len(options.groups), 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # it measures names
    panels = figure.subplots(1, len(options.groups), squeeze=False)[0]
    for axes, group in zip(panels, options.groups, strict=True):
        methods = passes | {name: load_method(name) for name in PRESETS[group]} | tools
        given = list(cases(options.data, group, options.pairs))
        small = next(cases(options.data, "hippocampus", 1))
        evaluate([Case("first", *small)], methods, distances=False)  # what is loaded at a first call is not counted
        rows: list[Row] = []
        for number, pair in enumerate(tqdm(given, desc=group, leave=False)):
            rows += evaluate([Case(str(number), *pair)], methods, distances=False)
        points = summary(rows)
        print(f"\n{group}, {len(given)} pairs, {options.checkpoint}\n\n| | Dice | CPU s |\n|---|---|---|")
        for name, (seconds, dice) in points.items():
            print(f"| {name} | {dice:.3f} | {'' if math.isclose(seconds, 0) else f'{seconds:.1f}'} |", flush=True)
        draw(axes, group, points, Path(options.checkpoint).stem)
    panels[0].set_ylabel("Dice")
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(options.output, dpi=100)
    print(f"\nWrote {options.output}")


if __name__ == "__main__":
    main()
