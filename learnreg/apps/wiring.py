"""Build objects from a plain configuration, and check that they fit together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import Logger, WandbLogger

from learnreg.configs.build import build
from learnreg.configs.checks import places, targets
from learnreg.data.datamodule import RegistrationData
from learnreg.errors import InputError, MissingPackageError
from learnreg.networks.checkpoint import load_checkpoint, recipe, unsupervised
from learnreg.networks.oriented import Oriented
from learnreg.training.blocks import check_compiler, compile_blocks, recompute_blocks
from learnreg.training.module import RegistrationModule
from learnreg.writing import write_atomically

STORED = ("network", "objective", "refinement")
MONITORED = ("val/loss", "val/dice", "val/sd_log_jacobian", "val/folding", "val/amortization_gap")
LOGGED = re.compile(
    r"val/.+_loss|val/(objective|dice)_after_\d+|train/.+|lr-.+"
)  # besides, by terms, steps, optimizers
LOGGING = ("learnreg", "pytorch_lightning", "lightning")  # packages whose callbacks log nothing else
PRECISIONS = (
    *("32", "32-true", "bf16-mixed", "bf16", "16", "16-mixed", "64", "64-true", "16-true", "bf16-true"),
    *("transformer-engine", "transformer-engine-float16"),
)


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


def check_options(config: dict[str, Any]) -> None:
    """Check options that Lightning or the report would refuse later, or take without a word.

    ``trainer.max_time`` in hours, minutes and seconds becomes one with days, which Lightning needs.

    Raises:
        InputError: One cannot be used.
    """
    for key in ("refine", "report_pairs"):
        if config[key] < 0:
            raise InputError(f"{key}={config[key]} must be a number of at least 0.")
    trainer = config["trainer"]
    time, precision = trainer.get("max_time"), trainer.get("precision")
    if isinstance(time, str):
        found = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d):(\d\d)", time.strip())
        if not found or (found[1] and len(found[2]) != 2):
            raise InputError(f"trainer.max_time={time} must be days:hours:minutes:seconds, such as 00:00:05:00.")
        days, hours = divmod(int(found[2]), 24)
        trainer["max_time"] = f"{int(found[1] or 0) + days:02}:{hours:02}:{found[3]}:{found[4]}"
    if precision is not None and str(precision) not in PRECISIONS:
        raise InputError(f"trainer.precision={precision} is unknown; choose 32-true, bf16-mixed or 16-mixed.")
    _check_monitor(config["callbacks"])


def _check_monitor(callbacks: dict[str, Any]) -> None:
    """Refuse to monitor a value that nothing logs; a callback of another package may log any."""
    monitor = (callbacks.get("best") or {}).get("monitor")
    packages = {target.partition(".")[0] for target in targets(callbacks)}
    if monitor is None or packages - set(LOGGING) or monitor in MONITORED or LOGGED.fullmatch(str(monitor)):
        return
    close = difflib.get_close_matches(str(monitor), (*MONITORED, "train/loss"), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(MONITORED)}."
    raise InputError(f"callbacks.best.monitor={monitor} is not a value of the validation; {hint}")


def build_callbacks(config: dict[str, Any]) -> list[Callback]:
    """Build the callbacks of a training; at its end, the others see the weights of those that average."""
    made: list[Callback] = [instantiate(entry, _convert_="all") for entry in config["callbacks"].values() if entry]
    return sorted(made, key=lambda callback: not isinstance(callback, WeightAveraging))


def build_loggers(config: dict[str, Any]) -> list[Logger]:
    """Build the loggers of a training.

    Raises:
        MissingPackageError: A logger needs a package that is not installed.
    """
    loggers = []
    for name, entry in config["logger"].items():
        try:
            loggers += [instantiate(entry, _convert_="all")] if entry else []
        except InstantiationException as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            raise MissingPackageError(
                f"logger={name} needs a missing package: pip install 'learnreg[{name}]', or use logger=csv."
            ) from error
    return loggers


def close(loggers: Iterable[Logger]) -> None:
    """Let Weights & Biases finish before the last line of the run."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def check_launch(trainer: Trainer, precision: Any = None) -> None:
    """Check what depends on how many processes train, and in which precision.

    Args:
        trainer: The trainer.
        precision: The precision that was asked for; Lightning replaces float16 on a CPU.

    Raises:
        InputError: It is a sweep whose processes would draw different hyperparameters, all numbers would be of 16 or
            64 bits, or float16 is not available.
    """
    hydra = HydraConfig.get()
    launcher = hydra.runtime.choices.get("hydra/launcher")
    if hydra.mode == RunMode.MULTIRUN and trainer.world_size > 1 and launcher != "submitit_slurm":
        raise InputError(
            f"A sweep (-m) with {trainer.world_size} processes gives each of them other values; "
            "set trainer=default trainer.devices=1, or hydra/launcher=submitit_slurm."
        )
    if str(precision) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise InputError(
            f"trainer.precision={precision} needs a GPU; set bf16-mixed, or 32-true where the CPU has no instructions "
            "for bfloat16."
        )
    if str(trainer.precision) in ("64-true", "16-true", "bf16-true"):
        raise InputError(
            f"trainer.precision={trainer.precision} would also compute coordinates in it; set 32-true or bf16-mixed."
        )


def build_module(config: dict[str, Any], data: Any) -> RegistrationModule:
    """Return the Lightning module, with the recipe of its checkpoints, which is checked before the training.

    Raises:
        InputError: A part cannot be built, or not again from a checkpoint.
    """
    space = data.space
    shape = None if space.shape is None else [int(n) for n in space.shape]
    spacing = space.spacing if isinstance(space.spacing, (int, float)) else [float(s) for s in space.spacing]
    place = {**asdict(space), "spacing": spacing, "shape": shape}
    stored = recipe(config["network"], config["objective"], place, config["refinement"])
    trust = trusted(config)
    build(unsupervised(config["objective"]), source="objective", trust=trust)
    if config["refinement"]:
        build(config["refinement"], source="refinement", trust=trust)
    return RegistrationModule(
        build(config["network"], source="network", trust=trust),
        instantiate(config["objective"], _convert_="all"),
        instantiate(config["optimizer"], _convert_="all"),
        consistency=instantiate(config["consistency"], _convert_="all") if config["consistency"] else None,
        features=instantiate(config["features"], _convert_="all") if config["features"] else None,
        symmetric=config["symmetric"],
        warmup=config["warmup"],
        schedule=instantiate(config["schedule"], _convert_="all"),
        recipe=stored,
        seed=config["seed"],
    )


def check_data(config: dict[str, Any], module: RegistrationModule, data: Any) -> None:
    """Check that the files have what the training and the choice of the best checkpoint need.

    Raises:
        InputError: A file lacks it, or the files do not fit together.
    """
    if not isinstance(data, RegistrationData):  # the others make their images
        return
    ndim = len(data.space.shape or ())
    if module.network.ndim != ndim or module.network.in_channels != data.channels:
        keys = [key for key in places(config["network"], "network") if key.endswith(".ndim")]
        remedy = " ".join(f"{key}={ndim} {key.replace('ndim', 'in_channels')}={data.channels}" for key in keys)
        raise InputError(
            f"The network takes {module.network.ndim}-D images of {module.network.in_channels} channel(s), but "
            f"data.space.shape has {ndim} sizes and images have {data.channels} channel(s); set "
            f"{remedy or 'both in its configuration'}."
        )
    if data.orientations and module.network.recognizes_orientation:
        raise InputError(
            "This network learns to recognize the orientation of the training images, which data.orientations=true "
            "changes; set data.orientations=false, or use a network without Oriented."
        )
    data.check(module.needs)
    best = config["callbacks"].get("best") or {}
    labeled = any(fixed.labels and moving.labels for fixed, moving in data.pairs())
    if best.get("monitor") == "val/dice" and not labeled:
        raise InputError(
            f"callbacks.best.monitor=val/dice needs labels, which no validation pair of {data.path} has; set "
            "callbacks.best.monitor=val/loss callbacks.best.mode=min, or give labels."
        )


def trusted(config: dict[str, Any]) -> list[str]:
    """Return the packages of ``trust``, and those whose classes the configuration of a training names itself."""
    named = {target.partition(".")[0] for key in STORED for target in targets(config.get(key))}
    return [*config.get("trust", ()), *sorted(named - {"learnreg", "monai"})]


def prepare_blocks(config: dict[str, Any], module: RegistrationModule, device: torch.device) -> None:
    """Compile the blocks of the network, or compute them again for the gradient, as the configuration says.

    Raises:
        InputError: Both are wanted, the network has no blocks, or there is no compiler.
    """
    if config["compile"] and config["gradient_checkpointing"]:
        raise InputError(
            "compile=true and gradient_checkpointing=true exclude each other: the second computation of a compiled "
            "block keeps other values than the first one. Choose one."
        )
    if config["compile"]:
        check_compiler(device)
        compile_blocks(module.network)
    if config["gradient_checkpointing"]:
        recompute_blocks(module.network)


def begin_with(module: RegistrationModule, checkpoint: str, trust: Sequence[str] = ()) -> None:
    """Load the weights of another training, for fine-tuning on other data or another objective."""
    loaded = load_checkpoint(checkpoint, trust=trust)
    network, other = module.network, loaded.network
    if isinstance(network, Oriented) != isinstance(other, Oriented):  # orientations are learned anew, or not needed
        network, other = (n.network if isinstance(n, Oriented) else n for n in (network, other))
    try:
        network.load_state_dict(other.state_dict())
    except RuntimeError as error:
        made = {key: value for key, value in loaded.recipe["network"].items() if key != "_target_"}
        raise InputError(
            f"start={checkpoint} holds a {type(loaded.network).__name__} of {made}, which does not fit the network of "
            "this training; set network= and its keys to the same, or start=null to begin with random weights."
        ) from error


def check_compared(config: dict[str, Any], module: RegistrationModule) -> None:
    """Check the models of ``compare`` before the training, and not after it.

    Raises:
        InputError: A file or name is unknown, or a model is for other images.
    """
    wanted = module.network.ndim, module.network.in_channels
    for name in config["compare"]:
        network = load_checkpoint(name, trust=trusted(config)).network
        if (network.ndim, network.in_channels) != wanted:
            raise InputError(
                f"compare={name} is a model for {network.ndim}-D images of {network.in_channels} channel(s); this "
                f"training has {wanted[0]}-D images of {wanted[1]}. Leave it out."
            )
