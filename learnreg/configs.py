"""Where the Hydra configs are, what may stand in them, and plain errors for what may not.

Importing this module is cheap: it must answer a misspelt key before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RELEASED = ".safetensors"
PACKAGE = Path(__file__).resolve().parent


@dataclass
class TrainConfig:
    """Keys of ``conf/train.yaml``; the schema that every experiment is merged into.

    Args:
        data: A data module.
        network: ``forward(fixed, moving) -> Transform``.
        objective: What training, the classical method and the refinement minimize.
        optimizer: Of the weights.
        trainer: Options of ``pytorch_lightning.Trainer``.
        callbacks: Lightning callbacks by name.
        logger: Lightning loggers by name.
        method: The classical method that the report compares with.
        refinement: The stage that corrects a network's answer; checkpoints keep it.
        seed: Of weights, shuffling and augmentation.
        consistency: Of the network's answers there and back; ``None`` does not ask for the way back.
        features: What the objective compares in place of the intensities; ``None`` compares those.
        symmetric: Score each pair in both directions.
        warmup: Share of the training in which the learning rate rises.
        resume: A checkpoint of an earlier run to go on from.
        start: A checkpoint, or the name of a model, whose weights a new training begins with: fine-tuning.
        report_pairs: Validation pairs that are registered after the training, by every method.
        refine: Classical steps from the network's answer, in that report.
    """

    data: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    refinement: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    consistency: dict[str, Any] | None = None
    features: dict[str, Any] | None = None
    symmetric: bool = False
    warmup: float = 0.02
    resume: str | None = None
    start: str | None = None
    report_pairs: int = 0
    refine: int = 30


def config_dir() -> Path:
    """The folder with ``train.yaml``: beside the package in a checkout, inside it in a wheel.

    Raises:
        FileNotFoundError: There is none; the installation is broken.
    """
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"No configs beside {PACKAGE}; install learnreg again.")


def register_schema() -> None:
    """Make ``schema`` known to Hydra, and the resolvers of the configs.

    ``${run_name:...}`` is the experiment, or ``unnamed`` without one; ``${precision:...}`` what an accelerator
    multiplies fastest in, see :func:`fastest_precision`.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=TrainConfig)
    OmegaConf.register_new_resolver("run_name", lambda experiment: experiment or "unnamed", replace=True)
    OmegaConf.register_new_resolver("precision", fastest_precision, replace=True)


def fastest_precision(accelerator: str) -> str:
    """``"bf16-mixed"`` where the convolutions of a training gain by it, else ``"32-true"``.

    That is on GPUs with bfloat16, and on CPUs that multiply it: with AMX (Intel since Sapphire Rapids) five times as
    fast as float32, with AVX-512 alone (AMD since Zen 4) twice; on other CPUs it would be far slower. What is not a
    convolution stays in float32.

    Args:
        accelerator: Lightning's name of it; ``"auto"`` is a GPU if there is one.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    multiplied = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16-mixed" if accelerator in ("auto", "cpu") and multiplied else "32-true"


def method_names() -> list[str]:
    """Presets of ``conf/method``."""
    return sorted(file.stem for file in (config_dir() / "method").glob("*.yaml"))


def model_files() -> dict[str, Path]:
    """The trained models that come with learnreg, by name; each has a card, ``NAME.md``, beside it.

    They lie beside the package in a checkout, inside it in a wheel.
    """
    folders = (PACKAGE / "models", PACKAGE.parent / "models")
    return {file.stem: file for folder in folders for file in sorted(folder.glob(f"*{RELEASED}"))}


def check_targets(config: Any) -> None:
    """Compare the keys of every ``_target_`` with what it takes.

    Args:
        config: Plain containers, resolved.

    Raises:
        ValueError: A target does not exist, or does not know a key.
    """
    for where, node in _nodes(config, ""):
        target = _locate(str(node["_target_"]), where)
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):
            continue
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            continue
        for key in node:
            if not str(key).startswith("_") and key not in parameters:
                raise ValueError(unknown_key(f"{where}.{key}" if where else str(key), str(key), list(parameters)))


def unknown_key(where: str, key: str, known: list[str]) -> str:
    """One line that names the likely key."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(known))}."
    return f"Unknown config key {where!r}; {hint}"


def _nodes(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _nodes(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{where}[{index}]")


def _locate(target: str, where: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}._target_ is {target!r}, which cannot be imported: {error}.") from error
