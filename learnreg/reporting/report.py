"""A report of a registration: one page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import json
import platform
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from learnreg import __version__
from learnreg.reporting.figures import figure_html, objective_figure, registration_figure
from learnreg.reporting.volumes import views
from learnreg.typing import PathLike
from learnreg.writing import write_atomically

if TYPE_CHECKING:
    from learnreg.methods import Registration

LARGEST = 5_000_000  # bytes of a page
VIEWER = "vendor/niivue-0.69.0.umd.js.gz"
RESERVE = 100_000  # bytes for the text and the script of a page
PACKAGES = ("torch", "monai", "SimpleITK", "numpy", "nibabel")

# name in metrics.json: what it is called, unit, what it says
EXPLAINED: dict[str, tuple[str, str, str]] = {
    "ncc": ("correlation", "", "Correlation of the intensities where both images were seen; 1 is best."),
    "mutual_information": ("mutual information", "", "What one image tells about the other, for different contrasts."),
    "dice": ("Dice", "", "Mean overlap of the labels that both images have; 1 is best, 0 is no overlap."),
    "hd95_mm": ("95 % Hausdorff distance", "mm", "Distance that 95 % of the surfaces of the labels keep; 0 is best."),
    "landmarks_mm": ("landmarks", "mm", "Mean distance of corresponding landmarks; 0 is best."),
    "folding_percent": ("folding", "%", "Share of voxels where space is turned inside out; a good result has about 0."),
    "sd_log_jacobian": ("SDlogJ", "", "How unevenly volume changes; 0 for a rigid transform, lower is smoother."),
    "mean_displacement_mm": ("mean displacement", "mm", "Mean distance that points move, initial alignment included."),
    "largest_displacement_mm": ("largest displacement", "mm", "Longest distance that a point moves."),
    "iterations": ("iterations", "", "Evaluations of the objective; 0 for a network without refinement."),
    "seconds": ("time", "s", "Wall time of the registration without reading and writing."),
    "peak_memory_mb": ("peak memory", "MB", "Largest memory of the computation, without the images."),
    "inverse_residual_mm": ("residual of the inverse", "mm", "Distance between a point and its image there and back."),
}
RUN = ("fixed", "moving", "method", "checkpoint", "refine", "weight", "device", "threads", "learnreg")


def write_report(result: Registration, metrics: Mapping[str, Any], path: PathLike) -> None:
    """Write a report of a registration as one HTML file of less than 5 MB, which needs no network.

    Args:
        result: The registration.
        metrics: What ``learnreg register`` writes to ``metrics.json``. Each key is optional; those of ``"before"`` and
            ``"after"`` are shown side by side, ``"verdict"`` and ``"verdict_reasons"`` on top.
        path: The file; a file that exists is replaced.

    Example:
        >>> import tempfile
        >>> from learnreg.methods import Registration
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "report.html"
        ...     write_report(Registration(learnreg.Affine.identity(2), image, image), {"fixed": "a.nii.gz"}, file)
        ...     "a.nii.gz" in file.read_text()
        True
    """
    page = report_html(result, metrics)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: Path(part).write_text(page, encoding="utf-8"))


def report_html(result: Registration, metrics: Mapping[str, Any]) -> str:
    """Return the page that :func:`write_report` writes."""
    names = _short_name(metrics.get("fixed"), "fixed"), _short_name(metrics.get("moving"), "moving")
    same = "mutual_information" not in metrics.get("after", {})
    figure = registration_figure(
        result.fixed, result.moving, result.sampled, initial=result.initial, names=names, same_contrast=same
    )
    overview = figure_html(figure, "Difference: red where the moving image is brighter." if same else "", dpi=60)
    curve = "<p class=note>Not recorded: the method has no iterations, or the report was made from files.</p>"
    if any(level.losses for level in result.history):
        curve = figure_html(objective_figure(result.history), "The objective falls; each level has a scale of its own.")
    library = _asset_bytes(VIEWER) if result.fixed.ndim == 3 and min(result.fixed.grid.shape) > 1 else b""
    encoded = base64.b64encode(library).decode()
    left = LARGEST - RESERVE - len(overview) - len(curve) - len(encoded)
    fields = {
        "title": html.escape(f"{names[1]} on {names[0]}"),
        "style": asset("report.css"),
        "verdict": verdict_html(metrics),
        "summary": html.escape(repr(result)),
        "niivue": asset("niivue.html") if library else "",
        "figure": overview,
        "metrics": _metrics_html(metrics),
        "objective": curve,
        "run": _run_html(metrics),
        "data": as_json(views(result, largest=left).encoded()),
        "library": f'<script type="text/plain" id="library">{encoded}</script>' if library else "",
        "script": asset("report.js"),
    }
    return Template(asset("report.html")).substitute(fields)


def verdict_html(metrics: Mapping[str, Any]) -> str:
    """Return the verdict of ``metrics.json`` with its reasons; empty if there is none."""
    if "verdict" not in metrics:
        return ""
    level = str(metrics["verdict"])
    style = level if level in ("PASS", "WARN", "FAIL") else "none"
    reasons = "".join(f"<li>{html.escape(str(reason))}</li>" for reason in metrics.get("verdict_reasons") or [])
    return f'<p><span class="verdict {style}">{html.escape(level)}</span></p>' + (f"<ul>{reasons}</ul>" * bool(reasons))


def asset(name: str) -> str:
    """Return a text file that belongs to the pages."""
    return _asset_bytes(f"assets/{name}").decode("utf-8")


def as_json(values: Any) -> str:
    """Return values as JSON that cannot end the element of the page in which it lies."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def number(value: Any) -> str:
    """Return a value of ``metrics.json`` as it is shown.

    Example:
        >>> number(0.123456), number(None), number(12), number({"mean": 0.5})
        ('0.1235', 'none', '12', 'mean 0.5')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value))
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _asset_bytes(name: str) -> bytes:
    return resources.files("learnreg.reporting").joinpath(name).read_bytes()


def _short_name(path: Any, otherwise: str) -> str:
    return Path(str(path)).name if path else otherwise


def _metrics_html(metrics: Mapping[str, Any]) -> str:
    """Return a table of all that was measured, with a sentence on each."""
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    rows = [_metric_row(key, before.get(key), after.get(key)) for key in {**before, **after} if key != "dice_by_label"]
    shown = {
        "before",
        "after",
        "verdict",
        "verdict_reasons",
        "verdict_measures",
        "warnings",
        "pair",
        "status",
        "fingerprint",
        "stamp",
        "content",
        *RUN,
    }
    rows += [_metric_row(key, "", value) for key, value in metrics.items() if key not in shown]
    table = _table(["", "before", "after", "what it says"], rows)
    labels = after.get("dice_by_label")
    if isinstance(labels, Mapping) and labels:
        earlier = before.get("dice_by_label") or {}
        each = [[str(label), number(earlier.get(label)), number(value), ""] for label, value in labels.items()]
        table += f"<details><summary>Dice by label</summary>{_table(['label', 'before', 'after', ''], each)}</details>"
    noticed = metrics.get("warnings") or []
    return table + "".join(f"<p>Warning: {html.escape(str(warning))}</p>" for warning in noticed)


def _metric_row(key: str, before: Any, after: Any) -> list[str]:
    name, unit, sentence = EXPLAINED.get(key, (key.replace("_", " "), "", ""))
    return [f"{name}, {unit}" if unit else name, "" if before == "" else number(before), number(after), sentence]


def _run_html(metrics: Mapping[str, Any]) -> str:
    """Return what was run, with which versions, and the command that repeats it."""
    rows = [[key, number(metrics[key])] for key in RUN if key in metrics and key != "learnreg"]
    rows.append(["learnreg", number(metrics.get("learnreg", __version__))])
    rows.append(["Python", platform.python_version()])
    rows += [[package, version(package)] for package in PACKAGES]
    text = _table(["", ""], rows)
    if "fixed" in metrics and "moving" in metrics:
        text += f"<p>To repeat it:</p><pre>{html.escape(command(metrics))}</pre>"
    return text


def command(metrics: Mapping[str, Any]) -> str:
    """Return the command line that repeats a registration.

    Example:
        >>> command({"fixed": "my a.nii.gz", "moving": "b.nii.gz", "method": "fast", "device": "cpu"})
        "learnreg register 'my a.nii.gz' b.nii.gz -o OUT --method fast --device cpu"
    """
    if metrics.get("command"):
        return str(metrics["command"])
    parts = ["learnreg", "register", str(metrics["fixed"]), str(metrics["moving"]), "-o", "OUT"]
    for key in ("method", "checkpoint", "refine", "weight", "device", "threads"):
        if metrics.get(key):
            parts += [f"--{key}", str(metrics[key])]
    return shlex.join(parts)


def _table(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Return a table; every cell is escaped, numbers are aligned right."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for row in rows:
        styles = [' class="number"' if 0 < k < 3 and len(row) > 2 else "" for k in range(len(row))]
        lines.append("".join(f"<td{s}>{html.escape(cell)}</td>" for s, cell in zip(styles, row, strict=True)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
