"""Types of the options of the commands: how a word of the command line becomes a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter, Token


def whole_number(least: int) -> Callable[[Any, Sequence[Token]], int]:
    """Return a converter to integers of at least ``least``."""

    def convert(_: Any, words: Sequence[Token]) -> int:
        text = words[0].value
        if not text.isdigit() or int(text) < least:
            raise ValueError(f"expected a number of at least {least}, got {text!r}")
        return int(text)

    return convert


def length(_: Any, words: Sequence[Token]) -> float:
    """Convert to a length in mm."""
    text = words[0].value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"expected a length in mm above 0, got {text!r}")
    return value


def block(_: Any, words: Sequence[Token]) -> tuple[int, int]:
    """Convert ``A:B``."""
    first, _, last = words[0].value.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"expected A:B with A < B, such as 160:200, got {words[0].value!r}")
    return int(first), int(last)


def shard(_: Any, words: Sequence[Token]) -> tuple[int, int]:
    """Convert ``I/N``."""
    own, _, count = words[0].value.partition("/")
    if not (own.isdigit() and count.isdigit() and 1 <= int(own) <= int(count)):
        raise ValueError(f"expected I/N with I from 1 to N, such as 3/8, got {words[0].value!r}")
    return int(own), int(count)


def sizes(_: Any, words: Sequence[Token]) -> tuple[int, ...]:
    """Convert the sizes of a shape."""
    return tuple(whole_number(1)(int, [word]) for word in words)


FormatName: TypeAlias = Literal[  # those of learnreg.transforms.files, which is not imported for a help
    "itk", "ants", "fsl", "fsl-relative", "fsl-absolute", "freesurfer", "c3d", "x5", "learn2reg", "learn2reg-half"
]

COMPUTING = "Computation"  # heading in the help

File: TypeAlias = Annotated[str | Path, Parameter(metavar="FILE")]
Files: TypeAlias = Annotated[Sequence[str | Path], Parameter(metavar="FILE")]
SomeFiles: TypeAlias = Annotated[Sequence[str | Path], Parameter(metavar="FILE...", consume_multiple=1)]
Reference: TypeAlias = Annotated[str | Path, Parameter(alias="-r", metavar="IMAGE")]
Output: TypeAlias = Annotated[str | Path, Parameter(alias="-o", metavar="OUT")]
Name: TypeAlias = Annotated[str, Parameter(metavar="NAME")]
Names: TypeAlias = Annotated[Sequence[str], Parameter(metavar="NAME", show_default=False)]
Models: TypeAlias = Annotated[Sequence[str | Path], Parameter(metavar="FILE", show_default=False)]
Trusted: TypeAlias = Annotated[Sequence[str], Parameter(metavar="PACKAGE", show_default=False)]
Flag: TypeAlias = Annotated[bool, Parameter(show_default=False)]
Positive: TypeAlias = Annotated[int, Parameter(converter=whole_number(1), metavar="N")]
Count: TypeAlias = Annotated[int, Parameter(converter=whole_number(0), metavar="N")]
Length: TypeAlias = Annotated[float, Parameter(converter=length, metavar="MM")]
Number: TypeAlias = Annotated[float, Parameter(metavar="VALUE")]
Block: TypeAlias = Annotated[tuple[int, int], Parameter(converter=block, n_tokens=1, metavar="A:B")]
Shard: TypeAlias = Annotated[tuple[int, int], Parameter(converter=shard, n_tokens=1, metavar="I/N", show_default="1/1")]
Shape: TypeAlias = Annotated[Sequence[int], Parameter(converter=sizes, consume_multiple=1, metavar="N...")]
Device: TypeAlias = Annotated[str, Parameter(group=COMPUTING, metavar="DEVICE")]
Threads: TypeAlias = Annotated[int, Parameter(group=COMPUTING, converter=whole_number(1), metavar="N")]
Jobs: TypeAlias = Threads
From: TypeAlias = Annotated[FormatName, Parameter(name="--from", metavar="FORMAT")]
To: TypeAlias = Annotated[FormatName, Parameter(name="--to", metavar="FORMAT")]
Quiet: TypeAlias = Annotated[bool, Parameter(group=COMPUTING, show_default=False)]
