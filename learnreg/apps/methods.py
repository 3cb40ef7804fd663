"""``learnreg methods``: list presets and trained models with the first line of their file or card."""

from __future__ import annotations

from learnreg.configs.files import config_dir, method_names
from learnreg.configs.models import VARIABLE, model_files, models_url


def run() -> None:
    """Print one line per preset and model."""
    for name in method_names():
        first = (config_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:12} {first.lstrip('# ')}")
    for name, file in model_files().items():
        card = file.with_suffix(".md")
        first = card.read_text(encoding="utf-8").strip().partition("\n")[0] if card.is_file() else ""
        print(f"{name:12} --checkpoint {name}: {first.lstrip('# ') or file}")
    if models_url() is not None:
        print(f"{'NAME':12} --checkpoint NAME: from {VARIABLE}={models_url()}, downloaded when it is first used")
