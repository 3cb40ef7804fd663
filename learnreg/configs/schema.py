"""The schema of a training configuration and the resolvers that its files use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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


def register_schema() -> None:
    """Make ``schema`` known to Hydra, and the resolvers of the configs.

    ``${run_name:...}`` is the experiment, or ``unnamed`` without one; ``${precision:...}`` what an accelerator
    multiplies fastest in, see :func:`fastest_precision`.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(TrainConfig)
    schema._get_node("trainer")._set_flag("struct", False)  # any argument of Lightning's Trainer can be set
    ConfigStore.instance().store(name="schema", node=schema)
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
