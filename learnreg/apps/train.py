"""``python train.py experiment=...``: training; wiring only."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnreg.apps.environment import let_threads_sleep
from learnreg.apps.errors import input_error, logging_errors, one_line, reporting_errors
from learnreg.apps.launch import FAILED, check_folder, checkpoint_to_resume
from learnreg.configs.checks import check_targets, places, unknown_key
from learnreg.configs.compose import compose_config
from learnreg.configs.files import config_dir
from learnreg.configs.schema import TrainConfig, register_schema
from learnreg.errors import InputError, MissingFileError

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
        _check_folders(sys.argv[1:])
        import hydra

        try:
            with _one_line_each(sys.argv[1:]):
                hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(_task)()
        except ValueError as error:
            if "No trials are completed" not in str(error):  # what Optuna says when there is no best trial
                raise
            raise InputError(
                "Every job of the sweep failed; each has its error.log in the folder of the sweep."
            ) from error
        if FAILED:
            raise SystemExit(1)


def _task(config: DictConfig) -> float | None:
    """Run one training. A job of a sweep that fails leaves its error in its folder, and the others go on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with reporting_errors():
            return _trained(config)
    try:
        return _trained(config)
    except Exception as error:
        known = input_error(error)
        kind = "" if known else f"{type(error).__name__}: "
        print(f"error: job {HydraConfig.get().job.num}: {kind}{one_line(known or error)}", file=sys.stderr)
        return None  # no value: Optuna counts a failed trial, and would stop at NaN


def _trained(config: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = Path(HydraConfig.get().runtime.output_dir)
    check_folder(folder, config.resume)
    with logging_errors(folder):
        try:
            plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise InputError(_explain(error)) from error
        for key in plain:
            if key not in TrainConfig.__dataclass_fields__:
                raise InputError(unknown_key(key, key, list(TrainConfig.__dataclass_fields__)))
        check_targets(plain)
        plain["resume"] = checkpoint_to_resume(plain["resume"], folder)
        return run(plain)


def _check_folders(arguments: list[str]) -> None:
    """Check the folder of a run or a sweep before Hydra writes its configuration there."""
    given = {key: value.strip("'\"") for key, _, value in (argument.partition("=") for argument in arguments)}
    sweep = {"-m", "--multirun"} & given.keys()
    folder = given.get("hydra.sweep.dir" if sweep else "hydra.run.dir")
    if folder and "${" not in folder:
        for run in Path(folder).glob("*/") if sweep else [Path(folder)]:
            check_folder(run, given.get("resume"))


def _by_group(argument: str) -> str:
    """Replace ``GROUP@objective.GROUP=``, Hydra's other way to spell a term of the objective, by its config group."""
    return re.sub(r"^(similarity|penalties|supervision)@objective\.\1=", r"objective/\1=", argument)


def _explain(error: Exception) -> str:
    message = str(error).splitlines()[0]
    if "LEARNREG_DATA" in message:
        return "This experiment needs the folder with the images: set LEARNREG_DATA=/path/to/data."
    if message.startswith("Interpolation key"):
        return (
            f"{message}: the chosen options do not fit together, for example a learned template needs data.space.shape."
        )
    missing = getattr(error, "full_key", None)
    if message.startswith("Missing mandatory value"):
        names = ", ".join(sorted(file.stem for file in (config_dir() / "experiment").glob("*.yaml")))
        return f"Set {missing}=..., or choose an experiment: experiment={names}."
    return f"Config: {message}"


def _check_command_line(arguments: list[str]) -> None:
    """Compose the configuration once, so that a typing error is one line before torch is imported.

    A sweep (``-m``) is composed by Hydra before its first run.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--config-dir", "-cd")
    for name in (
        ("--help", "-h"),
        ("--hydra-help",),
        ("--version",),
        ("--info", "-i"),
        ("--cfg", "-c"),
        ("--multirun", "-m"),
    ):
        flags.add_argument(*name, action="store_true", dest="other")
    known, rest = flags.parse_known_args(arguments)
    if known.config_dir and not Path(known.config_dir).is_dir():
        raise MissingFileError(f"No such folder: --config-dir {known.config_dir}. Give one with experiment/ in it.")
    if known.other:
        return
    overrides = [argument for argument in rest if not argument.startswith("-") and "=" in argument]
    if known.config_dir:
        overrides.append(f"hydra.searchpath=[file://{Path(known.config_dir).resolve()}]")
    with _one_line_each(overrides):
        compose_config(config_dir(), "train", overrides)


@contextmanager
def _one_line_each(arguments: Sequence[str]) -> Iterator[None]:
    """Turn an error of the composition into an :class:`InputError`; what a class raises when it is built stays."""
    from hydra.errors import ConfigCompositionException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (ConfigCompositionException, OverrideParseException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, arguments)) from error


def _one_line(error: Exception, arguments: Sequence[str]) -> str:
    """Return Hydra's message on one line, with the choices or the likely key."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = f"{error}\n{cause}"
    for pattern in (r"full_key: (\S+)", r"Could not override '([^'@]+)", r"^Key '([^']+)'"):
        found = re.search(pattern, text, re.MULTILINE)
        if found and re.search(r"^\s*(Key '|Could not override)", text, re.MULTILINE):
            return _unknown(found[1], _existing(arguments))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(
        dict.fromkeys(line for line in lines if not line.startswith(("Config search path", "set hydra", "provider=")))
    )


def _existing(arguments: Sequence[str]) -> Any:
    """Return the configuration of the given choices of groups, or the default one if they do not fit together."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    choices = [text for text in arguments if re.match(r"[\w/]+=[\w-]+$", text) or text.startswith("hydra.searchpath=")]
    try:
        config = compose_config(config_dir(), "train", choices)
    except HydraException:
        config = compose_config(config_dir(), "train")
    return OmegaConf.to_container(config, resolve=False)


def _unknown(key: str, config: Any) -> str:
    """Return an error message for a key or group that does not exist in a configuration, with those that do."""
    if "/" in key:
        groups = [str(folder.relative_to(config_dir())) for folder in config_dir().rglob("*") if folder.is_dir()]
        return unknown_key(key, key, groups)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    beside = [str(k) for k in node if not str(k).startswith("_")] if isinstance(node, dict) else []
    elsewhere = [place for place in places(config) if place.split(".")[-1] == name]
    below = [place for place in elsewhere if parents and place.startswith(".".join([*parents, ""]))]
    if below:
        return f"Unknown config key {key!r}; did you mean {below[0]!r}?"
    if not parents and not difflib.get_close_matches(name, beside, n=1) and elsewhere:
        return f"Unknown config key {key!r}; the same name is a key elsewhere: {', '.join(elsewhere)}."
    return unknown_key(key, name, beside or places(config))


def _quieten() -> None:
    """Hide Lightning's messages about itself; errors and the progress bar stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*ended before the epoch ended.*",  # its data are resumed by their index
        ".*AMP with fp16 is not supported on CPU.*",  # it is refused
        ".*Using `DistributedSampler` with the dataloaders.*",  # what it repeats does not count
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def run(config: dict[str, Any]) -> float | None:
    """Build everything, train, and report; return the best monitored value."""
    import pytorch_lightning as pl
    import torch
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from learnreg.apps.train_report import report
    from learnreg.apps.wiring import (
        begin_with,
        build_callbacks,
        build_loggers,
        build_module,
        check_compared,
        check_data,
        check_launch,
        check_options,
        close,
        prepare_blocks,
        save_config,
        trusted,
        validate_last,
    )
    from learnreg.networks.checkpoint import load_checkpoint
    from learnreg.training.checkpoints import TERMINATED

    _quieten()
    check_options(config)
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
    check_compared(config, module)
    trainer = instantiate(
        config["trainer"],
        callbacks=build_callbacks(config),
        logger=build_loggers(config),
        _convert_="all",
    )
    check_launch(trainer, config["trainer"].get("precision"))
    prepare_blocks(config, module, trainer.strategy.root_device)
    folder = HydraConfig.get().runtime.output_dir
    if trainer.is_global_zero:
        weights = sum(p.numel() for p in module.network.parameters())
        print(
            f"Training {type(module.network).__name__}, {weights / 1e6:.2f} M weights; run folder: {folder}", flush=True
        )
        save_config(config, folder)
    for logger in trainer.loggers:
        logger.log_hyperparams(config)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=config["resume"], weights_only=bool(config["resume"]) or None)
    except SystemExit as ended:
        if ended.code == TERMINATED and trainer.is_global_zero:
            print(f"Stopped by SIGTERM at step {trainer.global_step}; resume=auto goes on: {folder}", flush=True)
        raise
    validate_last(trainer, module, data)
    close(trainer.loggers)
    if trainer.is_global_zero:
        if config["report_pairs"]:
            report(config, data, folder)
        print(f"Run folder: {folder} (checkpoints/best.ckpt, checkpoints/last.ckpt, metrics/, figures/)")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # the next job of a sweep is another training
    best = trainer.checkpoint_callback.best_model_score if trainer.checkpoint_callback else None
    return None if best is None else float(best)


if __name__ == "__main__":
    main()
