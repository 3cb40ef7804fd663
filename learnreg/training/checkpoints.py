"""What a training needs to go on exactly where it was killed: whole checkpoints, and a table of metrics that fits."""

from __future__ import annotations

import csv
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from learnreg.errors import InputError
from learnreg.typing import PathLike
from learnreg.writing import PART, write_atomically

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a training that SIGTERM has stopped."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill leaves the former one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        file = Path(path)
        for part in file.parent.glob(f"{PART}*{file.suffix}"):  # of a process that was killed
            part.unlink(missing_ok=True)
        write_atomically(file, lambda name: torch.save(checkpoint, name))


class MetricsTable(Logger):
    """Logger that writes ``metrics.csv`` in a folder, and goes on with the table that is there.

    Args:
        folder: Folder of the table.
        every: Rows that are kept in memory before they are written; a checkpoint writes them as well.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = MetricsTable(folder)
        ...     table.log_metrics({"val/loss": 0.5}, step=9)
        ...     table.save()
        ...     print(table.file.read_text().split())
        ['step,val/loss', '9,0.5']
    """

    def __init__(self, folder: PathLike, every: int = 10) -> None:
        super().__init__()
        self.file, self.every = Path(folder) / "metrics.csv", int(every)
        self._columns: list[str] | None = None
        self._written = 0
        self._rows: list[dict[str, Any]] = []
        self._newest: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:
        return self

    @property
    def rows(self) -> int:
        """Number of rows of the table, with those that are not written yet."""
        self._begin()
        return self._written + len(self._rows)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` in the run folder has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, unless it repeats the one before: a checkpoint writes its row before Lightning does."""
        row = {**metrics, "step": step}
        if row == self._newest:
            return
        self._newest = row
        self._rows.append(row)
        if len(self._rows) >= self.every:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are in memory."""
        self._begin()
        new = sorted({name for row in self._rows for name in row} - set(self._columns or ()))
        if new:
            self._rewrite([*(self._columns or ()), *new], self._read() + self._rows)
        elif self._rows:
            with self.file.open("a", newline="", encoding="utf-8") as lines:
                csv.DictWriter(lines, self._columns or ()).writerows(self._rows)
        self._written += len(self._rows)
        self._rows = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def cut(self, rows: int) -> None:
        """Remove all rows but the first ones, as a checkpoint does not know the rows that were written after it."""
        self.save()
        if self._written > rows:
            self._rewrite(self._columns or [], self._read()[:rows])
            self._written = rows

    def _begin(self) -> None:
        if self._columns is None:
            self._columns = []
            if self.file.exists():
                with self.file.open(newline="", encoding="utf-8") as lines:
                    self._columns = next(csv.reader(lines), [])
                self._written = len(self._read())

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if None not in row.values() and None not in row]
        return [{name: value for name, value in row.items() if value != ""} for row in rows]

    def _rewrite(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        def write(name: str) -> None:
            with Path(name).open("w", newline="", encoding="utf-8") as lines:
                writer = csv.DictWriter(lines, columns)
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.file, write)
        self._columns = columns


class LastCheckpoint(Checkpoint):
    """Callback that keeps the newest state of a training in ``last.ckpt``, for ``resume``.

    It saves after a validation, every ``minutes``, at the end, when an image can no longer be read, and on SIGTERM,
    which SLURM sends before it ends a job; the training then exits with status 143. A training that is resumed from it
    ends with the weights and with the table of :class:`MetricsTable` of one that was never stopped.

    Args:
        folder: Folder of ``last.ckpt``.
        minutes: Largest time between two checkpoints, apart from the time of a validation.

    Raises:
        InputError: ``minutes`` is not positive.

    Example:
        >>> LastCheckpoint("checkpoints", minutes=5).file.as_posix()
        'checkpoints/last.ckpt'
    """

    def __init__(self, folder: PathLike, minutes: float = 10.0) -> None:
        if not minutes > 0:
            raise InputError(f"LastCheckpoint.minutes must be positive, got {minutes}.")
        self.file, self.minutes = Path(folder) / "last.ckpt", float(minutes)
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._validated = self._terminated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler waits for the other processes, which may be waiting for this one elsewhere.
            signal.signal(signal.SIGTERM, self._terminate)
        if trainer.ckpt_path is None:  # a table that is there is of a run that was killed before its first checkpoint
            for table in trainer.loggers:
                if isinstance(table, MetricsTable):
                    table.cut(0)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= max(1, callback.patience):
                trainer.should_stop = True  # it had stopped before

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save if it is time, but not between a step and its validation, nor between the batches of a step."""
        if trainer.is_last_batch or _between_steps(trainer) or _validates(trainer):
            return
        due = self._validated or self._terminated or time.monotonic() - self._saved_at > 60 * self.minutes
        if not trainer.strategy.reduce_boolean_decision(due, all=False):
            return
        trainer._logger_connector.update_train_step_metrics()  # the row of this step, which would come after the hook
        self._save(trainer)
        if trainer.strategy.reduce_boolean_decision(self._terminated, all=False):
            raise SystemExit(TERMINATED)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save if an image of the next batch could not be read: the steps before it are whole."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        whole = batches.ready == batches.completed and not _between_steps(trainer) and not trainer.validating
        # With several processes, the others wait for the batch and would not take part.
        if isinstance(exception, InputError) and whole and trainer.world_size == 1:
            self.on_train_end(trainer, pl_module)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self._validated, self._saved_at, self._saved_step = False, time.monotonic(), trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in trainer.loggers:
            logger.save()
        checkpoint["rows"] = [table.rows for table in trainer.loggers if isinstance(table, MetricsTable)]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        tables = [table for table in trainer.loggers if isinstance(table, MetricsTable)]
        for table, rows in zip(tables, checkpoint.get("rows", ()), strict=False):
            table.cut(rows)


def _between_steps(trainer: pl.Trainer) -> bool:
    """Return whether the gradients of the present batch wait for those of the next one."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0


def _validates(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the present batch."""
    every = trainer.val_check_batch
    return isinstance(every, int) and every > 0 and (trainer.fit_loop.batch_idx + 1) % every == 0
