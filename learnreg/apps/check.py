"""``learnreg check``: read every file of a data set, and tell what is wrong."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from tqdm.auto import tqdm

from learnreg.data.survey import Entry, all_subjects, survey
from learnreg.typing import PathLike
from learnreg.writing import subject_name

SHOWN = 10  # labels in a row of the table


def run(data: PathLike, *, quiet: bool = False) -> None:
    """Print the table and the findings; the exit status is 0, or 1 if there is a serious finding."""
    subjects = all_subjects(data)
    entries = survey(
        subjects, lambda s: tqdm(s, total=len(subjects), disable=quiet or not sys.stderr.isatty(), desc="check")
    )
    if not quiet:
        print(table(entries))
        print()
    findings = [finding for entry in entries for finding in entry.findings]
    for finding in findings:
        print(
            f"{'error' if finding.serious else 'note'}: {finding.file}: {_unnamed(finding.problem, str(finding.file))}"
        )
    serious = sum(finding.serious for finding in findings)
    print(f"{len(entries)} images, {summary(entries)}; {serious} errors, {len(findings) - serious} notes")
    if serious:
        raise SystemExit(1)


def table(entries: Sequence[Entry]) -> str:
    """Return a row per image."""
    rows = [
        "| image | shape z y x | spacing mm x y z | axes | channels | range | labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        name = subject_name(entry.subject.image)
        if entry.shape is None or entry.range is None:
            rows.append(f"| {name} | cannot be read | | | | | |")
            continue
        shape, spacing = " ".join(map(str, entry.shape)), " ".join(f"{s:g}" for s in entry.spacing)
        low, high = entry.range
        rows.append(
            f"| {name} | {shape} | {spacing} | {entry.orientation} | {entry.channels} | {low:.4g} to {high:.4g} | "
            f"{_labels(entry.labels)} |"
        )
    return "\n".join(rows)


def summary(entries: Sequence[Entry]) -> str:
    """Return on one line what the images have in common."""
    readable = [entry for entry in entries if entry.shape is not None]
    counts = (
        (len({entry.shape for entry in readable}), "shape"),
        (len({entry.spacing for entry in readable}), "spacing"),
        (len({entry.orientation for entry in readable}), "orientation"),
    )
    parts = [f"{count} {name}{'s' if count != 1 else ''}" for count, name in counts]
    parts.append(f"{sum(entry.labels is not None for entry in readable)} with labels")
    groups = Counter(entry.subject.group for entry in entries if entry.subject.group)
    if groups:
        parts.append(f"{len(groups)} groups")
    return ", ".join(parts)


def _labels(labels: tuple[int, ...] | None) -> str:
    if labels is None:
        return ""
    shown = " ".join(map(str, labels[:SHOWN]))
    return shown if len(labels) <= SHOWN else f"{shown} ... ({len(labels)} values)"


def _unnamed(problem: str, file: str) -> str:
    """Return a message without the name of the file that it begins with."""
    return problem.removeprefix(file).lstrip(": ")
