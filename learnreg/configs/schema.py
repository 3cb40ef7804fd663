"""The schema of a training configuration and the resolvers that its files use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from learnreg.configs.processes import run_stamp


@dataclass
class TrainConfig:
    """Keys of ``conf/train.yaml``, the schema that every experiment is merged into.

    Args:
        data: A data module.
        network: A :class:`learnreg.networks.Network`, or another module that :func:`learnreg.networks.as_network`
            accepts.
        objective: What training, the classical method and the refinement minimize.
        optimizer: Of the weights.
        schedule: The learning rate over the training, after the warm-up.
        trainer: Arguments of ``pytorch_lightning.Trainer``.
        callbacks: Lightning callbacks by name.
        logger: Lightning loggers by name.
        method: The classical method to compare with in the report.
        refinement: The stage or method that refines a network's answer; it is stored in checkpoints.
        seed: Of weights, shuffling and augmentation.
        consistency: Penalty on the answers there and back; ``None`` does not predict the way back.
        features: Channels that the objective compares instead of the intensities; ``None`` compares the intensities.
        symmetric: Score each pair in both directions.
        warmup: Share of the training in which the learning rate rises.
        compile: Compile the blocks of the network by ``torch.compile``.
        gradient_checkpointing: Compute the blocks of the network again for the gradient, to need less memory.
        resume: A checkpoint of an earlier run to continue; ``auto`` is the newest of the run folder, if there is one. A
            job that SLURM or torchrun starts again has ``auto``.
        start: A checkpoint, or the name of a model, with the initial weights: fine-tuning.
        trust: Packages whose classes the files of ``resume``, ``start`` and ``compare`` can name, such as ``[mylab]``.
            Packages that this configuration names itself are trusted.
        report_pairs: Validation pairs that every method registers after the training: the classical method, the network
            before the training (with ``start``), one-shot and refined.
        compare: Checkpoints, or names of models, that register these pairs too.
        refine: Classical steps that refine the network's answer in that report.
    """

    data: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
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
    compile: bool = False
    gradient_checkpointing: bool = False
    resume: str | None = None
    start: str | None = None
    trust: list[str] = field(default_factory=list)
    report_pairs: int = 0
    compare: list[str] = field(default_factory=list)
    refine: int = 30


def register_schema() -> None:
    """Register the schema and the resolvers of the configs with Hydra.

    ``${run_name:...}`` is the name of the experiment, or ``unnamed``. ``${run_stamp:...}`` is the time, equal in all
    processes, or the number of a SLURM job, see :func:`learnreg.configs.processes.run_stamp`. ``${precision:...}`` is
    the fastest precision of an accelerator, see :func:`fastest_precision`.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(TrainConfig)
    schema._get_node("trainer")._set_flag("struct", False)  # any argument of Lightning's Trainer can be set
    ConfigStore.instance().store(name="schema", node=schema)
    OmegaConf.register_new_resolver("run_stamp", run_stamp, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda experiment: experiment or "unnamed", replace=True)
    OmegaConf.register_new_resolver("precision", fastest_precision, replace=True)


def fastest_precision(accelerator: str) -> str:
    """Return ``"bf16-mixed"`` if it speeds up the convolutions of a training, else ``"32-true"``.

    It does on GPUs with bfloat16 and on CPUs with instructions for it: with AMX (Intel since Sapphire Rapids) they are
    five times as fast as in float32, with AVX-512 alone (AMD since Zen 4) twice. On other CPUs bfloat16 is far slower.
    All but the convolutions stay in float32.

    Args:
        accelerator: Lightning's name; ``"auto"`` is a GPU if there is one.
    """
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    multiplied = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16-mixed" if accelerator in ("auto", "cpu") and multiplied else "32-true"
