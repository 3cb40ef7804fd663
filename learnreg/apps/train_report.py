"""The report at the end of a training: every method on validation pairs, in numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from learnreg.apps.wiring import trusted
from learnreg.data.datasets import Case
from learnreg.methods import Method, OneShotMethod, Registration
from learnreg.methods.contrast import SAME, contrast_agreement
from learnreg.methods.evaluation import evaluate, summarize, table
from learnreg.networks.checkpoint import load_checkpoint
from learnreg.reporting.figures import registration_figure, save_figure
from learnreg.writing import write_atomically


def compared(config: dict[str, Any], run: Path) -> dict[str, Method]:
    """Return the methods of the report by their names in its table.

    Args:
        config: The configuration of the run.
        run: The run folder.
    """
    trust = trusted(config)
    checkpoint = load_checkpoint(run / "checkpoints" / "best.ckpt", trust=trust)
    methods: dict[str, Method] = {"classical": instantiate(config["method"], _convert_="all")}
    for name in config["compare"]:
        methods[Path(name).stem] = OneShotMethod(load_checkpoint(name, trust=trust))
    if config["start"]:
        before = load_checkpoint(config["start"], trust=trust).network
        methods["before training"] = OneShotMethod(replace(checkpoint, network=before))
    return methods | {
        "one-shot": OneShotMethod(checkpoint),
        "refined": OneShotMethod(checkpoint, refine=config["refine"]),
    }


def report(config: dict[str, Any], data: Any, folder: str) -> None:
    """Register the first validation pairs by each method; print and save the results."""
    run = Path(folder)
    methods = compared(config, run)

    def picture(case: Case, done: Mapping[str, Registration]) -> None:
        for name, result in done.items():
            figure = registration_figure(
                case.fixed,
                case.moving,
                result.sampled,
                initial=result.initial,
                title=f"{case.name}, {name}",
                same_contrast=contrast_agreement(case.fixed, case.moving, result.sampled) >= SAME,
            )
            save_figure(figure, run / "figures" / f"{case.name} {name}.png".replace(" < ", "_").replace(" ", "_"))

    print(f"Registering {config['report_pairs']} held-out pairs ...", flush=True)
    rows = evaluate(data.cases(config["report_pairs"]), methods, on_case=picture)
    text = table(rows)
    print(text)
    write_atomically(run / "report.md", lambda part: Path(part).write_text(text + "\n", encoding="utf-8"))
    content = json.dumps({"summary": summarize(rows), "cases": rows}, indent=2) + "\n"
    write_atomically(run / "report.json", lambda part: Path(part).write_text(content, encoding="utf-8"))
    print(f"Pictures: {run / 'figures'}")
