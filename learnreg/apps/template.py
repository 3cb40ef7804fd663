"""``learnreg template``: compute the mean of a group of images."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from learnreg import __version__
from learnreg.apps.errors import naming, one_line
from learnreg.apps.evaluate import within
from learnreg.apps.output import check_unused, recorded_warnings
from learnreg.apps.register import set_device
from learnreg.data.formats import Subject, read_subjects
from learnreg.errors import InputError
from learnreg.io import smallest_type, write_image
from learnreg.methods.api import choose_method
from learnreg.methods.groupwise import GroupTemplate, build_template
from learnreg.reporting.figures import save_figure, template_figure
from learnreg.transforms.files import write_transform
from learnreg.typing import PathLike
from learnreg.writing import distinct_names, together

FILES = ("template.nii.gz", "transforms", "figure.png", "metrics.json")


def run(
    data: PathLike,
    *,
    output: Path,
    method: str = "fast",
    rounds: int = 4,
    block: tuple[int, int] | None = None,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Build the template; write it, the transforms, a figure and the rounds."""
    check_unused(output, FILES, overwrite=overwrite)
    device = set_device(device, threads)
    subjects = within(read_subjects(data), block, data)
    names = _names(subjects)
    with recorded_warnings() as noticed:
        images = [subject.read().to(device) for subject in subjects]
        shown = not quiet and sys.stderr.isatty()
        files = {f"image {k}": subject.image for k, subject in enumerate(subjects, 1)}
        with (
            naming(files, otherwise=str(data)),
            tqdm(total=rounds * len(images), disable=not shown, desc="template", unit="pair") as bar,
        ):
            chosen = choose_method(method, trust=trust)
            template = build_template(images, chosen, rounds=rounds, on_pair=bar.update)
    save(template, dict(zip(names, subjects, strict=True)), output, method, noticed)
    if not quiet:
        for number, done in enumerate(template.rounds, 1):
            print(f"round {number}: spread {done.spread:.4f}, drift {done.drift:.3f} mm, change {done.change:.4f}")
        print(f"Wrote {output}: {', '.join(name for name in FILES if (output / name).exists())}")


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Return a name for each image; time points have that of their file and their number, such as ``cine_t3``."""
    files = list(dict.fromkeys((subject.image, subject.time) for subject in subjects if subject.time is not None))
    series = list(dict.fromkeys(file for file, _ in files))
    others = [subject.image for subject in subjects if subject.time is None]
    if len(files) + len(others) < len(subjects):
        raise InputError("A time point is listed twice; list each one once.")
    named = dict(zip([*series, *others], distinct_names([*series, *others]), strict=True))
    return [
        named[subject.image] if subject.time is None else f"{named[subject.image]}_t{subject.time}"
        for subject in subjects
    ]


def save(
    template: GroupTemplate,
    subjects: dict[str, Subject],
    output: Path,
    method: str,
    noticed: Sequence[str] = (),
) -> None:
    """Write all files together. A figure that fails costs neither the template nor the transforms.

    Args:
        template: What was built.
        subjects: Its images; the keys name the transforms.
        output: Folder of the files.
        method: Preset or file, for ``metrics.json``.
        noticed: Warnings so far, for ``metrics.json``.
    """
    image = template.image.to("cpu")
    noticed = list(noticed)
    metrics: dict[str, Any] = {
        "images": [str(subject.image) for subject in subjects.values()],
        "method": method,
        "rounds": [asdict(done) for done in template.rounds],
        "learnreg": __version__,
    }
    with together(output) as part:
        write_image(image.data[0], image.grid, part / FILES[0])
        if image.labels is not None:
            write_image(image.labels[0].to(smallest_type(image.labels)), image.grid, part / "labels.nii.gz")
        for name, transform in zip(subjects, template.transforms, strict=True):
            write_transform(transform.to("cpu"), image.grid, part / FILES[1] / f"{name}.h5")
        try:
            save_figure(template_figure(image, title=f"mean of {len(subjects)} images"), part / FILES[2])
        except (RuntimeError, MemoryError, ArithmeticError, ValueError) as error:
            noticed.append(f"the figure could not be drawn: {type(error).__name__}: {one_line(error)}")
            warnings.warn(noticed[-1], stacklevel=2)
        metrics |= {"warnings": noticed} if noticed else {}
        (part / FILES[3]).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
