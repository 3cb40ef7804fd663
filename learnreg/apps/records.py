"""What ``learnreg batch`` writes of each pair, and the tables of all pairs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from learnreg.errors import InputError
from learnreg.writing import write_atomically

FILES = {"transform": "transform.h5", "warped": "warped.nii.gz", "figure": "figure.png", "metrics": "metrics.json"}
FAILED = "failed"
HIDDEN = ("fingerprint", "stamp", "content")  # of metrics.json, not columns of a table
COLUMNS = (
    "pair",
    "status",
    "reason",
    "verdict",
    "verdict_reasons",
    "fixed",
    "moving",
    "seconds",
    "folding_percent",
    "sd_log_jacobian",
)

Row: TypeAlias = dict[str, Any]


def read_row(name: str, output: Path) -> Row | None:
    """Return the row of a pair that is done or has failed.

    Raises:
        InputError: Its file is damaged, or was not made by ``learnreg batch``.
    """
    for file in records_of(name, output):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise InputError(f"{file} is damaged; remove it.") from error
        if not isinstance(row, dict) or not {"status", "pair"} <= row.keys():
            raise InputError(f"{file.parent} was not made by `learnreg batch`; give another folder (-o).")
        return row
    return None


def records_of(name: str, output: Path) -> tuple[Path, Path]:
    """Return the file of a pair that is done, and that of one that failed."""
    return output / name / FILES["metrics"], output / FAILED / f"{name}.json"


def write_results(pairs: Sequence[str], output: Path, name: str) -> list[Row]:
    """Write a table with a row per pair, as far as they are done, and return the rows.

    With pandas and pyarrow, a table of all pairs is also written as ``results.parquet``.
    """
    rows = [row for pair in pairs if (row := read_row(pair, output)) is not None]
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in table for key in row)]))

    def write(part: str) -> None:
        with Path(part).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, columns)
            writer.writeheader()
            writer.writerows(table)

    write_atomically(output / name, write)
    if name == "results.csv":
        with suppress(ImportError):
            import pandas  # type: ignore[import-untyped]

            frame = pandas.DataFrame(table, columns=columns)
            write_atomically(output / "results.parquet", lambda part: frame.to_parquet(part, engine="pyarrow"))
    return rows


def flat(row: Row) -> Row:
    """Return a row whose measures before and after are columns; those by label stay in ``metrics.json``.

    The reasons of the verdict are one column.
    """
    columns = {key: value for key, value in row.items() if not isinstance(value, (dict, list)) and key not in HIDDEN}
    if "verdict_reasons" in row:
        columns["verdict_reasons"] = "; ".join(row["verdict_reasons"])
    for side in ("before", "after"):
        measures = row.get(side, {})
        columns |= {f"{key}_{side}": value for key, value in measures.items() if not isinstance(value, (dict, list))}
    return columns
