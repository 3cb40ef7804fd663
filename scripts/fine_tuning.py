"""Draw Dice over the CPU minutes of a training: fine-tuned from a trained model, and from scratch.

python scripts/fine_tuning.py $LEARNREG_DATA [--checkpoint NAME] [--minutes 10] [-o docs/fine_tuning.png]

`experiment=hippocampus` with few labelled subjects (files 1-20), one thread and a constant learning rate, for the
network of the model with and without its weights, and for the network of the experiment. Dice is that of one pass on
neighbors of the files 161-200; the minutes are those of the training alone.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import time
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from universal import Case, hippocampus_cases

from learnreg.apps.wiring import begin_with, build_module
from learnreg.configs.compose import compose_config
from learnreg.configs.files import config_dir
from learnreg.configs.schema import register_schema
from learnreg.methods import OneShotMethod
from learnreg.networks.checkpoint import Checkpoint, load_checkpoint
from learnreg.training import RegistrationModule

Curve = list[tuple[float, float]]  # CPU minutes, Dice


class Watch(pl.Callback):
    """Measures one pass at equal shares of a number of CPU minutes, then ends the training.

    Args:
        cases: Pairs that are held out.
        minutes: Of the training, without the measurements.
        points: Number of measurements after the first one.
    """

    def __init__(self, cases: list[Case], minutes: float, points: int) -> None:
        self.cases, self.seconds, self.points = cases, 60 * minutes, points
        self.spent = 0.0
        self.curve: Curve = []
        self.steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.steps += 1
        spent = self.spent + time.process_time() - self.began
        if spent >= self.seconds * len(self.curve) / self.points:
            self.spent = spent
            self._measure(pl_module)
            trainer.should_stop = spent >= self.seconds

    def _measure(self, module: pl.LightningModule) -> None:
        assert isinstance(module, RegistrationModule)  # noqa: S101 - it is the one that was built
        network = copy.deepcopy(module.network).eval()
        method = OneShotMethod(Checkpoint(network, module.objective, module.recipe["space"], module.recipe))
        found = []
        for case in self.cases:
            fixed, moving = (replace(image, labels=None) for image in (case.fixed, case.moving))
            found.append(case.measure(method(fixed, moving).transform))
        self.curve.append((self.spent / 60, statistics.fmean(found)))
        self.began = time.process_time()


def configuration(subjects: int, changes: list[str]) -> dict[str, Any]:
    """Compose the configuration of a training, without what belongs to a run folder."""
    given = ["experiment=hippocampus", "schedule=constant", "warmup=0", f"data.train=[0,{subjects}]", *changes]
    config = compose_config(config_dir(), "train", given)
    parts = ("network", "objective", "refinement", "optimizer", "consistency", "features", "schedule", "data")
    plain = {key: OmegaConf.to_container(config[key], resolve=True) if config[key] else None for key in parts}
    return plain | {key: config[key] for key in ("symmetric", "warmup", "seed")}


def trained(config: dict[str, Any], start: str | None, watch: Watch) -> None:
    """Train under the eyes of a callback."""
    pl.seed_everything(config["seed"], verbose=False)
    data = instantiate(config["data"], _convert_="all")
    data.setup()
    module = build_module(config, data)
    if start is not None:
        begin_with(module, start)
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=data.train_dataloader())


def draw(curves: dict[str, Curve], subjects: int, output: Path) -> None:
    """Draw the curves to a file."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), "o-", markersize=4, label=name)
    axes.set(xlabel="CPU minutes of training", ylabel="Dice", title=f"hippocampus, {subjects} labelled subjects")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(output, dpi=100)


def main() -> None:
    """Train each, print a table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="LEARNREG_DATA")
    parser.add_argument("--checkpoint", default="universal", help="file or name of a model of volumes")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--points", type=int, default=10, help="measurements of a training")
    parser.add_argument("--pairs", type=int, default=10, help="held out, at most 20")
    parser.add_argument("--lr", type=float, help="learning rate (default: that of the experiment)")
    parser.add_argument("-o", "--output", type=Path, default=Path("fine_tuning.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    os.environ["LEARNREG_DATA"] = str(options.data)
    register_schema()
    changes = [] if options.lr is None else [f"optimizer.lr={options.lr}"]
    own = configuration(options.subjects, changes)
    same = own | {"network": load_checkpoint(options.checkpoint).recipe["network"]}
    name = Path(options.checkpoint).stem
    contestants = {
        f"start={name}": (same, options.checkpoint),
        f"network of {name}, from scratch": (same, None),
        "network of the experiment, from scratch": (own, None),
    }
    cases = list(islice(hippocampus_cases(options.data), options.pairs))
    curves: dict[str, Curve] = {}
    print("| training | steps | Dice at CPU minutes |\n|---|---|---|")
    for title, (config, start) in contestants.items():
        watch = Watch(cases, options.minutes, options.points)
        trained(config, start, watch)
        curves[title] = watch.curve
        cells = ", ".join(f"{minutes:.1f}: {dice:.3f}" for minutes, dice in watch.curve)
        print(f"| {title} | {watch.steps} | {cells} |", flush=True)
    draw(curves, options.subjects, options.output)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
