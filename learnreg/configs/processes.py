"""How the processes of a training were started: by hand, by torchrun, or by SLURM."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this is the only or the first process of a training."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def is_restart() -> bool:
    """Return whether SLURM or torchrun started this training before."""
    return any(os.environ.get(name, "0") != "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def run_stamp(now: str) -> str:
    """Return the last part of the name of a run folder, equal in all processes of a training and after a restart.

    It is the number of the job under SLURM, and otherwise the time at which the first process began.

    Args:
        now: The time in this process.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job and "SLURM_PROCID" in os.environ:
        task, step = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_STEP_ID", "0")
        parts = [
            f"job-{job}",
            *([task] if task else []),
            *([f"step-{step}"] if step not in ("0", "4294967291") else []),
        ]
        return "_".join(parts)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _of_the_first_process(now)
    return now


def _of_the_first_process(text: str) -> str:
    """Return the text of the first process that torchrun started."""
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    store = next(iter(rendezvous("env://")))[0]
    shared = PrefixStore("learnreg", store)
    if is_first_process():
        return bytes(shared.compare_set("run_stamp", "", text)).decode()  # the first value stays after a restart
    return bytes(shared.get("run_stamp")).decode()
