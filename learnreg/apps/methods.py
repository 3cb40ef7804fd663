"""``learnreg methods``: the presets, each with the first comment of its file."""

from __future__ import annotations

import argparse

from learnreg.configs import config_dir, method_names


def run(options: argparse.Namespace) -> None:
    """Print one line a preset."""
    for name in method_names():
        first = (config_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:12} {first.lstrip('# ')}")
