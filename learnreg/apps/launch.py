"""Run folders: new ones, those of a training that goes on, and those of the failed jobs of a sweep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from learnreg.apps.errors import LOG
from learnreg.configs.processes import is_first_process, is_restart
from learnreg.errors import InputError

LAST = Path("checkpoints") / "last.ckpt"
FAILED: list[Path] = []
"""Run folders of the jobs of a sweep that failed."""


def checkpoint_to_resume(resume: str | None, folder: Path) -> str | None:
    """Return the checkpoint with which a training goes on.

    Args:
        resume: A file; ``"auto"``, the newest checkpoint of the run folder, if there is one; or ``None``, which is
            ``"auto"`` in a job that a cluster has started again.
        folder: The run folder.
    """
    if resume == "auto" or (resume is None and is_restart()):
        return str(folder / LAST) if (folder / LAST).exists() else None
    return resume


def check_folder(folder: Path, resume: str | None) -> None:
    """Check that a folder holds no other run. The first process checks for all: the others come after it.

    Raises:
        InputError: The folder holds a run, and ``resume`` is not a checkpoint of it.
    """
    if not is_first_process() or resume == "auto" or (resume is None and is_restart()):
        return
    if resume and Path(resume).expanduser().resolve().is_relative_to(folder.resolve()):
        return
    if any((folder / name).exists() for name in ("config.yaml", "checkpoints", "metrics")):
        raise InputError(
            f"{folder} already holds a run; continue it with resume=auto, or give another folder (hydra.run.dir=..., "
            "of a sweep hydra.sweep.dir=...)."
        )


class ReportFailures(Callback):
    """Hydra callback that lists the failed jobs of a sweep at its end, whatever the launcher is."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        sweep = Path(config.hydra.sweep.dir)
        FAILED[:] = sorted(file.parent for file in sweep.glob(f"*/{LOG}"))
        if FAILED:
            names = ", ".join(folder.name for folder in FAILED)
            print(f"error: {len(FAILED)} job(s) of {sweep} failed: {names}; each has its {LOG}", file=sys.stderr)
