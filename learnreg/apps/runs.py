"""``learnreg runs``: compare trainings."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from learnreg.errors import InputError
from learnreg.reporting.tables import markdown

T = TypeVar("T")
SHOWN = (("val/dice", 4), ("val/loss", 4), ("val/sd_log_jacobian", 3), ("val/folding", 6))


@dataclass(frozen=True)
class TrainingRun:
    """A training: its overrides and its validations in order.

    Args:
        folder: Of the run.
        choices: Overrides by key, such as ``{"network": "unet", "seed": "0"}``.
        monitor: The value that selected the best checkpoint, and whether larger is better.
        validations: One row per validation: the step, and each value by name.
    """

    folder: Path
    choices: dict[str, str]
    monitor: tuple[str, bool]
    validations: list[dict[str, float]]

    @property
    def best(self) -> dict[str, float]:
        """The validation of the best checkpoint."""
        name, greatest = self.monitor
        rows = [row for row in self.validations if name in row]
        return (max if greatest else min)(rows, key=lambda row: row[name]) if rows else {}


def run(folders: Sequence[Path]) -> None:
    """Print the table; runs that differ only in the seed share a row."""
    found = [read_run(folder) for folder in _folders(folders)]
    done = [training for training in found if training.best]
    for training in found:
        if not training.best:
            print(f"{training.folder} has no validation yet.")
    if not done:
        raise InputError("None of these runs has been validated.")
    print(markdown(summary(done)))


def summary(runs: list[TrainingRun]) -> list[list[str]]:
    """Return header and rows, the best first: the differences between runs, mean and range over seeds, and folders."""
    keys = sorted({key for training in runs for key in training.choices} - {"seed"})
    keys = [key for key in keys if len({training.choices.get(key) for training in runs}) > 1]
    groups: dict[tuple[str, ...], list[TrainingRun]] = {}
    for training in runs:
        groups.setdefault(tuple(training.choices.get(key, "") for key in keys), []).append(training)
    names = [(name, digits) for name, digits in SHOWN if any(name in training.best for training in runs)]
    rows = []
    for values, members in groups.items():
        monitor, greatest = members[0].monitor
        order = statistics.fmean(member.best[monitor] for member in members) * (-1 if greatest else 1)
        cells = [_mean([member.best[name] for member in members if name in member.best], n) for name, n in names]
        steps = _mean([member.validations[-1]["step"] + 1 for member in members], 0)
        rows.append((order, [*values, str(len(members)), steps, *cells, _listed(members)]))
    header = [*keys, "runs", "steps", *(name.removeprefix("val/") for name, _ in names), "folders"]
    return [header, *(row for _, row in sorted(rows, key=lambda item: item[0]))]


def _listed(members: Sequence[TrainingRun]) -> str:
    """Return the folders of runs, best first, so that a checkpoint can be named by copying."""
    monitor, greatest = members[0].monitor
    best = sorted(members, key=lambda member: member.best[monitor] * (-1 if greatest else 1))
    return ", ".join(str(member.folder) for member in best)


def _mean(values: list[float], digits: int) -> str:
    if not values:
        return ""
    text = f"{statistics.fmean(values):.{digits}f}"
    spread = (max(values) - min(values)) / 2
    return f"{text} ± {spread:.{digits}f}" if len(values) > 1 else text


def read_run(folder: Path) -> TrainingRun:
    """Read a run folder: ``config.yaml``, ``.hydra/overrides.yaml`` and ``metrics/metrics.csv``.

    Raises:
        InputError: A file is damaged, or was not written by a training.
    """
    config = _read_yaml(folder / "config.yaml", dict)
    callbacks = config.get("callbacks")
    best = callbacks.get("best") or {"monitor": "val/loss", "mode": "min"} if isinstance(callbacks, dict) else None
    if not isinstance(best, dict) or not {"monitor", "mode"} <= best.keys():
        raise InputError(f"{folder / 'config.yaml'} was not written by a training: it has no valid `callbacks`.")
    given = folder / ".hydra" / "overrides.yaml"
    overrides = _read_yaml(given, list) if given.exists() else []
    choices = dict(str(text).lstrip("+~").partition("=")[::2] for text in overrides)
    file = folder / "metrics" / "metrics.csv"
    rows = _read_validations(file) if file.exists() else []
    return TrainingRun(folder, choices, (best["monitor"], best["mode"] == "max"), rows)


def _read_yaml(file: Path, kind: type[T]) -> T:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, kind):
        raise InputError(f"{file} was not written by a training: it holds a {type(content).__name__}.")
    return content


def _read_validations(file: Path) -> list[dict[str, float]]:
    rows = []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for line in csv.DictReader(lines):
                values = {name: float(value) for name, value in line.items() if value and name != "epoch"}
                if any(name.startswith("val/") for name in values):
                    rows.append({"step": values["step"], **values})
    except (OSError, ValueError, TypeError, KeyError) as error:  # more cells than columns, or no column of steps
        raise InputError(f"{file} is not a table of metrics of a training: {error}.") from error
    return rows


def _folders(given: Sequence[Path]) -> list[Path]:
    """Return the given run folders, and the run folders below other folders."""
    found = []
    for folder in given:
        if not folder.is_dir():
            raise InputError(f"No such folder: {folder}. Give run folders, or the folder they lie in, such as runs.")
        inside = sorted(file.parent for file in folder.rglob("config.yaml") if file.parent.name != ".hydra")
        if not inside:
            raise InputError(f"{folder} holds no run, which has a config.yaml and metrics/.")
        found += inside
    return list(dict.fromkeys(found))
