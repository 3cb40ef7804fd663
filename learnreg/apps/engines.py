"""Run the shards of ``learnreg batch`` on SLURM, through submitit, or on a Ray cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from learnreg.errors import InputError, MissingPackageError


def run_shard(arguments: Sequence[str], shard: str) -> int:
    """Run ``learnreg batch`` for one shard in a process of its own, and return its exit status."""
    command = [sys.executable, "-m", "learnreg.apps.main", "batch", *arguments, "--shard", shard, "--quiet"]
    return subprocess.run(command, check=False).returncode


@dataclass(frozen=True)
class Engine:
    """Where shards run.

    Args:
        name: ``"slurm"`` or ``"ray"``.
        shards: Number of shards.
        settings: Parameters of submitit or ``ray.init``, each ``KEY=VALUE``.
    """

    name: str
    shards: int = 1
    settings: Sequence[str] = ()


def submit(engine: Engine, arguments: Sequence[str], output: Path, total: int, *, quiet: bool = False) -> None:
    """Run all shards on an engine, and wait; exit with the worst status of a shard.

    A shard that is interrupted goes on where it was when the same command is given again.

    Args:
        engine: Where.
        arguments: Of ``learnreg batch`` for one shard, without ``--shard``.
        output: Folder of the results.
        total: Number of pairs, for the progress bar.
        quiet: No progress bar.

    Raises:
        MissingPackageError: The engine is not installed.
        InputError: The engine does not start.
    """
    shards = [f"{number}/{engine.shards}" for number in range(1, engine.shards + 1)]
    settings = _settings(engine.settings)
    start = _on_slurm if engine.name == "slurm" else _on_ray
    try:
        tasks = start(arguments, shards, settings, output)
    except ImportError as error:
        raise MissingPackageError(
            f"--on {engine.name} needs a missing package: pip install 'learnreg[{engine.name}]'."
        ) from error
    codes = _wait(tasks, output, total, quiet=quiet)
    if any(codes):
        raise SystemExit(max(codes))


def _settings(given: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise InputError(f"--engine takes KEY=VALUE, such as timeout_min=60, got {text!r}.")
        settings[key] = int(value) if value.isdigit() else value
    return settings


def _on_slurm(arguments: Sequence[str], shards: Sequence[str], settings: dict[str, Any], output: Path) -> list[Any]:
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=output / "jobs", cluster=settings.pop("cluster", "slurm"))
        executor.update_parameters(name="learnreg", **({"timeout_min": 24 * 60} | settings))
        return list(executor.map_array(run_shard, [list(arguments)] * len(shards), shards))
    except (RuntimeError, NameError, TypeError, AssertionError) as error:
        raise InputError(f"--on slurm: {error}; see --engine.") from error


def _on_ray(arguments: Sequence[str], shards: Sequence[str], settings: dict[str, Any], output: Path) -> list[Any]:
    import ray

    each = {"num_cpus": settings.pop("num_cpus", 1), "num_gpus": settings.pop("num_gpus", 0)}
    if not ray.is_initialized():
        ray.init(**settings)
    # A shard that is lost with its node starts again, and skips what it had done.
    remote = ray.remote(max_retries=5, **each)(run_shard)
    return [_RayTask(remote.remote(list(arguments), shard)) for shard in shards]


class _RayTask:
    """A task of Ray with the interface of a job of submitit."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> int:
        import ray

        return int(ray.get(self.reference))


def _wait(tasks: Sequence[Any], output: Path, total: int, *, quiet: bool) -> list[int]:
    shown = not quiet and sys.stderr.isatty()
    with tqdm(total=total, unit="pair", disable=not shown) as bar:
        while not all(task.done() for task in tasks):
            if shown:
                bar.update(sum(1 for _ in output.glob("*/metrics.json")) - bar.n)
            time.sleep(5 if shown else 0.5)
    return [task.result() for task in tasks]
