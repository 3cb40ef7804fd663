"""``learnreg export``: write a trained network as one small file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from learnreg.errors import InputError
from learnreg.networks.checkpoint import release
from learnreg.typing import PathLike


def run(checkpoint: PathLike, *, output: Path, overwrite: bool = False, trust: Sequence[str] = ()) -> None:
    """Write the file and print its size."""
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; give another file, or --overwrite.")
    release(checkpoint, output, trust=trust)
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB")
