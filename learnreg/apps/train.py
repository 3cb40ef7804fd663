"""``python train.py experiment=...``: training; wiring only."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnreg.apps.environment import let_threads_sleep
from learnreg.apps.errors import logging_errors, reporting_errors
from learnreg.configs.checks import check_targets, unknown_key
from learnreg.configs.compose import compose_config
from learnreg.configs.files import config_dir
from learnreg.configs.schema import register_schema
from learnreg.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run ``train.py`` or ``learnreg train``."""
    let_threads_sleep()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra hides most of a traceback
    with reporting_errors():
        register_schema()
        sys.argv[1:] = [_by_group(argument) for argument in sys.argv[1:]]
        _check_command_line(sys.argv[1:])
        import hydra

        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(_task)()


def _task(config: DictConfig) -> float | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with reporting_errors():
        try:
            plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise InputError(_explain(error)) from error
        check_targets(plain)
        from hydra.core.hydra_config import HydraConfig

        with logging_errors(HydraConfig.get().runtime.output_dir):
            return run(plain)


def _by_group(argument: str) -> str:
    """Replace ``GROUP@objective.GROUP=``, Hydra's other way to spell a term of the objective, by its config group."""
    return re.sub(r"^(similarity|penalties|supervision)@objective\.\1=", r"objective/\1=", argument)


def _explain(error: Exception) -> str:
    message = str(error).splitlines()[0]
    if "LEARNREG_DATA" in message:
        return "This experiment needs the folder with the images: set LEARNREG_DATA=/path/to/data."
    missing = getattr(error, "full_key", None)
    if message.startswith("Missing mandatory value"):
        names = ", ".join(sorted(file.stem for file in (config_dir() / "experiment").glob("*.yaml")))
        return f"Set {missing}=..., or choose an experiment: experiment={names}."
    return f"Config: {message}"


def _check_command_line(arguments: list[str]) -> None:
    """Compose the configuration once, so that a typing error is one line before torch is imported."""
    if any(
        argument in ("--help", "-h", "--hydra-help", "--version", "--info", "--cfg", "-c", "-m", "--multirun")
        for argument in arguments
    ):
        return
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = [argument for argument in arguments if not argument.startswith("-") and "=" in argument]
    for flag, value in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            overrides.append(f"hydra.searchpath=[file://{Path(value).resolve()}]")
    try:
        compose_config(config_dir(), "train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """Return Hydra's message on one line, with the choices or the likely key."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in f"{error}\n{cause}".splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("Key '", "Could not override")) and "'" in line:
            key = line.split("'")[1].split(".")[-1]
            return unknown_key(key, key, _known_keys())
    return " ".join(
        dict.fromkeys(line for line in lines if not line.startswith(("Config search path", "set hydra", "provider=")))
    )


def _known_keys() -> list[str]:
    """Return every key of the default configuration."""
    from omegaconf import OmegaConf

    def walk(node: Any) -> list[str]:
        return [k for key, value in node.items() for k in (str(key), *walk(value))] if isinstance(node, dict) else []

    return sorted(set(walk(OmegaConf.to_container(compose_config(config_dir(), "train"), resolve=False))))


def _quieten() -> None:
    """Hide Lightning's messages about itself; errors and the progress bar stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def run(config: dict[str, Any]) -> float | None:
    """Build everything, train, and report; return the best monitored value."""
    import pytorch_lightning as pl
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from learnreg.apps.train_report import report
    from learnreg.apps.wiring import (
        begin_with,
        build_module,
        check_data,
        check_launch,
        close,
        save_config,
        trusted,
        validate_last,
    )
    from learnreg.networks.checkpoint import load_checkpoint

    check_launch(config)
    _quieten()
    trust = trusted(config)
    if config["resume"]:
        load_checkpoint(config["resume"], trust=trust)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    data = instantiate(config["data"], _convert_="all")
    data.setup()
    module = build_module(config, data)
    check_data(config, module, data)
    if config["start"]:
        begin_with(module, config["start"], trust)
    trainer = instantiate(
        config["trainer"],
        callbacks=[instantiate(c, _convert_="all") for c in config["callbacks"].values() if c],
        logger=[instantiate(entry, _convert_="all") for entry in config["logger"].values() if entry],
        _convert_="all",
    )
    folder = HydraConfig.get().runtime.output_dir
    if trainer.is_global_zero:
        weights = sum(p.numel() for p in module.network.parameters())
        print(
            f"Training {type(module.network).__name__}, {weights / 1e6:.2f} M weights; run folder: {folder}", flush=True
        )
        save_config(config, folder)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
    trainer.fit(module, datamodule=data, ckpt_path=config["resume"], weights_only=True if config["resume"] else None)
    validate_last(trainer, module, data)
    close(trainer.loggers)
    if trainer.is_global_zero:
        if config["report_pairs"]:
            report(config, data, folder)
        print(f"Run folder: {folder} (checkpoints/best.ckpt, checkpoints/last.ckpt, metrics/, figures/)")
    best = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None
    return None if best is None else float(best)


if __name__ == "__main__":
    main()
