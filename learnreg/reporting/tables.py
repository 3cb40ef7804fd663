"""Tables in Markdown, aligned to be read as they are."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as a Markdown table; the first row is the header.

    Example:
        >>> print(markdown([["name", "mm"], ["a", "1"]]))
        | name | mm |
        |---|---|
        | a | 1 |
    """
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
