"""A page over several results, worst first."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from learnreg.errors import InputError
from learnreg.reporting.report import asset, number
from learnreg.typing import PathLike
from learnreg.writing import write_atomically

RANKS = {"ERROR": 0, "FAIL": 1, "WARN": 2, "none": 3, "PASS": 4}  # worst first
HEAD = ("", "pair", "verdict", "similarity", "Dice", "landmarks, mm", "folding, %", "SDlogJ", "time, s", "reasons")


def write_index(folders: Sequence[PathLike], path: PathLike) -> None:
    """Write a sortable table of results as an HTML page, worst first: by verdict, then by similarity.

    Args:
        folders: Folders with ``metrics.json``, and ``report.html`` and ``figure.png`` if there are any; or the
            ``.json`` file that ``learnreg batch`` leaves of a pair that failed.
        path: The page. It links to the reports and pictures by their relative paths.

    Raises:
        InputError: A folder has no ``metrics.json``, or it cannot be read.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, ncc in (("good", 0.9), ("bad", 0.1)):
        ...         (Path(folder) / name).mkdir()
        ...         text = json.dumps({"after": {"ncc": ncc}})
        ...         _ = (Path(folder) / name / "metrics.json").write_text(text)
        ...     write_index([Path(folder) / "good", Path(folder) / "bad"], Path(folder) / "index.html")
        ...     page = (Path(folder) / "index.html").read_text()
        >>> page.index("bad") < page.index("good")
        True
    """
    file = Path(path)
    results = sorted(
        ((Path(folder), read_metrics(folder)) for folder in folders), key=lambda result: badness(result[1])
    )
    counts = Counter(_level(metrics) for _, metrics in results)
    told = ", ".join(f"{count} {level}" for level, count in counts.items() if level != "none")
    head = "".join(
        f'<th scope="col"><button type="button">{name}</button></th>' if name else "<th></th>" for name in HEAD
    )
    fields = {
        "title": html.escape(f"Registrations in {file.absolute().parent.name}"),
        "style": asset("report.css"),
        "summary": html.escape(f"{len(results)} results{': ' if told else ''}{told}, worst first."),
        "head": head,
        "rows": "\n".join(_row(folder, metrics, file.absolute().parent) for folder, metrics in results),
        "script": asset("index.js"),
    }
    page = Template(asset("index.html")).substitute(fields)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: Path(part).write_text(page, encoding="utf-8"))


def read_metrics(folder: PathLike) -> dict[str, Any]:
    """Return what ``learnreg register`` or ``learnreg batch`` wrote about a result.

    Raises:
        InputError: There is no such file, or it is damaged.
    """
    given = Path(folder)
    file = given if given.suffix == ".json" else given / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} is missing; give a folder that `learnreg register` or `batch` has written.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read or is damaged; register the pair again.") from error
    if not isinstance(metrics, dict):
        raise InputError(f"{file} holds no metrics; register the pair again.")
    return metrics


def badness(metrics: Mapping[str, Any]) -> tuple[int, float]:
    """Return a key that sorts results, worst first: by verdict, then by the similarity after the registration.

    Example:
        >>> failed, similar = {"verdict": "FAIL"}, {"after": {"ncc": 0.9}}
        >>> badness(failed) < badness({"after": {"ncc": 0.2}}) < badness(similar)
        True
    """
    value = _similarity(metrics)
    return RANKS[_level(metrics)], float("-inf") if value is None else value


def _level(metrics: Mapping[str, Any]) -> str:
    if metrics.get("status") == "failed":
        return "ERROR"
    level = metrics.get("verdict")
    return level if isinstance(level, str) and level in RANKS else "none"


def _similarity(metrics: Mapping[str, Any]) -> float | None:
    """Return the correlation after the registration; its size for images of different contrasts."""
    after = metrics.get("after")
    value = after.get("ncc") if isinstance(after, Mapping) else None
    if not isinstance(value, int | float):
        return None
    return abs(float(value)) if isinstance(after, Mapping) and "mutual_information" in after else float(value)


def _row(folder: Path, metrics: Mapping[str, Any], base: Path) -> str:
    level = _level(metrics)
    after = metrics["after"] if isinstance(metrics.get("after"), Mapping) else {}
    name = html.escape(str(metrics.get("pair") or folder.absolute().name))
    picture, report = folder / "figure.png", folder / "report.html"
    link = f'<a href="{_link(report, base)}">{name}</a>' if report.exists() else name
    seen = f'<img class="thumbnail" loading="lazy" alt="" src="{_link(picture, base)}">' if picture.exists() else ""
    reasons = metrics.get("verdict_reasons")
    told = [str(reason) for reason in [*(reasons or []), *([metrics["reason"]] if metrics.get("reason") else [])]]
    values = [_similarity(metrics), after.get("dice"), after.get("landmarks_mm")]
    values += [metrics.get(key) for key in ("folding_percent", "sd_log_jacobian", "seconds")]
    cells = [f"<td>{seen}</td>", f"<td>{link}</td>"]
    cells.append(f'<td data-value="{RANKS[level]}"><span class="verdict {level}">{level}</span></td>')
    for value in values:
        exact = f"{value}" if isinstance(value, int | float) else ""
        cells.append(f'<td class="number" data-value="{exact}">{html.escape(number(value)) if exact else ""}</td>')
    cells.append(f"<td>{html.escape('; '.join(told))}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _link(file: Path, base: Path) -> str:
    """Return the relative address of a file."""
    return html.escape(quote(Path(os.path.relpath(file.absolute(), base)).as_posix()))
