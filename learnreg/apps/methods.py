"""``learnreg methods``: list presets and trained models with the first line of their file or card."""

from __future__ import annotations

from learnreg.configs.files import config_dir, method_names, model_files


def run() -> None:
    """Print one line per preset and model."""
    for name in method_names():
        first = (config_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:12} {first.lstrip('# ')}")
    for name, file in model_files().items():
        first = file.with_suffix(".md").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:12} --checkpoint {name}: {first.lstrip('# ')}")
