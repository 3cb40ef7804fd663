"""``learnreg export``: write a trained network as one small file."""

from __future__ import annotations

import argparse
from pathlib import Path

from learnreg.errors import InputError
from learnreg.networks.checkpoint import release


def run(options: argparse.Namespace) -> None:
    """Write the file and print its size."""
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise InputError(f"{output} exists; give another file, or --overwrite.")
    release(options.checkpoint, output, trust=options.trust)
    print(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB")
