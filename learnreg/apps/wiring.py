"""Build objects from a plain configuration, and check that they fit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger

from learnreg.data.datamodule import RegistrationData
from learnreg.errors import InputError
from learnreg.io import write_atomically
from learnreg.networks.checkpoint import load_checkpoint, recipe
from learnreg.training.module import RegistrationModule


def save_config(config: dict[str, Any], folder: str) -> None:
    """Write ``config.yaml``, the configuration of the run with every interpolation resolved."""
    write_atomically(Path(folder) / "config.yaml", lambda part: OmegaConf.save(OmegaConf.create(config), part))


def validate_last(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Validate the last weights, which may be newer than the last validation, and keep them if they are the best."""
    values = trainer.validate(module, datamodule=data, verbose=False)[0]
    best = trainer.checkpoint_callback
    if not isinstance(best, ModelCheckpoint) or best.dirpath is None or best.monitor is None:
        return
    if best.monitor not in values:
        return
    score = torch.tensor(values[best.monitor])
    if best.best_model_score is None or (score > best.best_model_score.cpu()) == (best.mode == "max"):
        best.best_model_score = score
        trainer.save_checkpoint(Path(best.dirpath) / f"{best.filename}.ckpt")


def close(loggers: Iterable[Logger]) -> None:
    """Let Weights & Biases finish before the last line of the run."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def check_unused(folder: str, resume: str | None) -> None:
    """Refuse a run folder that holds another run, unless that run is resumed.

    Raises:
        InputError: It holds checkpoints.
    """
    used = Path(folder) / "checkpoints"
    own = resume is not None and Path(resume).expanduser().resolve().parent == used.resolve()
    if used.is_dir() and any(used.glob("*.ckpt")) and not own:
        raise InputError(
            f"{folder} already holds a run; give another hydra.run.dir, or continue it: resume={used / 'last.ckpt'}."
        )


def check_launch(config: dict[str, Any]) -> None:
    """Refuse a sweep whose ranks would draw different hyperparameters."""
    strategy = str(config["trainer"].get("strategy") or "")
    if HydraConfig.get().mode == RunMode.MULTIRUN and strategy.startswith("ddp"):
        launcher = HydraConfig.get().runtime.choices.get("hydra/launcher")
        if launcher != "submitit_slurm":
            raise InputError(
                "A sweep (-m) with trainer.strategy=ddp gives each rank other values; "
                "use devices=1, or the submitit_slurm launcher."
            )


def build_module(config: dict[str, Any], data: Any) -> RegistrationModule:
    """Return the Lightning module, with the recipe of its checkpoints."""
    space = data.space
    shape = None if space.shape is None else [int(n) for n in space.shape]
    spacing = space.spacing if isinstance(space.spacing, (int, float)) else [float(s) for s in space.spacing]
    place = {**asdict(space), "spacing": spacing, "shape": shape}
    stored = recipe(config["network"], config["objective"], place, config["refinement"])
    return RegistrationModule(
        instantiate(config["network"], _convert_="all"),
        instantiate(config["objective"], _convert_="all"),
        instantiate(config["optimizer"], _convert_="all"),
        consistency=instantiate(config["consistency"], _convert_="all") if config["consistency"] else None,
        features=instantiate(config["features"], _convert_="all") if config["features"] else None,
        symmetric=config["symmetric"],
        warmup=config["warmup"],
        recipe=stored,
    )


def check_supervision(module: RegistrationModule, data: LightningDataModule) -> None:
    """Check that every image has what the supervision of the training needs.

    Raises:
        InputError: Labels or landmarks of an image are missing; the message names the first images.
    """
    if not isinstance(data, RegistrationData):
        return
    for name, weighted in module.objective.supervision.items():
        needs: tuple[Literal["labels", "landmarks"], ...] = weighted.term.needs
        for kind in needs:
            lacking = data.lacking(kind)
            if lacking:
                listed = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
                raise InputError(
                    f"objective.supervision.{name} needs {kind} for every image, but {listed} of {data.path} "
                    f"{'has' if len(lacking) == 1 else 'have'} none. Add them, take the images out of data.train and "
                    "data.validation, or train on images alone (objective/supervision=null)."
                )


def begin_with(module: RegistrationModule, checkpoint: str, trust: Sequence[str] = ()) -> None:
    """Load the weights of another training, for fine-tuning on other data or another objective."""
    loaded = load_checkpoint(checkpoint, trust=trust)
    try:
        module.network.load_state_dict(loaded.network.state_dict())
    except RuntimeError as error:
        made = {key: value for key, value in loaded.recipe["network"].items() if key != "_target_"}
        raise InputError(
            f"start={checkpoint} holds a {type(loaded.network).__name__} of {made}, which does not fit the network of "
            "this training; set network= and its keys to the same."
        ) from error
