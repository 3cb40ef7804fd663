"""``learnreg template``: compute the mean of a group of images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from learnreg import __version__
from learnreg.apps.evaluate import within
from learnreg.apps.output import check_folder
from learnreg.apps.register import set_device
from learnreg.data.formats import Subject, read_subjects
from learnreg.errors import InputError
from learnreg.io import distinct_names, smallest_type, together, write_image
from learnreg.methods.api import choose_method
from learnreg.methods.groupwise import GroupTemplate, build_template
from learnreg.reporting.figures import save_figure, template_figure
from learnreg.transforms.itk import write_transform

FILES = ("template.nii.gz", "transforms", "figure.png", "metrics.json")


def run(options: argparse.Namespace) -> None:
    """Build the template; write it, the transforms, a figure and the rounds."""
    output = Path(options.output)
    check_folder(output)
    existing = [name for name in FILES if (output / name).exists()]
    if existing and not options.overwrite:
        raise InputError(f"{output} already holds {', '.join(existing)}; give another folder, or --overwrite.")
    set_device(options)
    subjects = within(read_subjects(options.data), options.block, options.data)
    names = distinct_names([subject.image for subject in subjects])
    images = [subject.read().to(options.device) for subject in subjects]
    shown = not options.quiet and sys.stderr.isatty()
    with tqdm(total=options.rounds * len(images), disable=not shown, desc="template", unit="pair") as bar:
        template = build_template(
            images, choose_method(options.method, trust=options.trust), rounds=options.rounds, on_pair=bar.update
        )
    save(template, dict(zip(names, subjects, strict=True)), output, options)
    if not options.quiet:
        for number, done in enumerate(template.rounds, 1):
            print(f"round {number}: spread {done.spread:.4f}, drift {done.drift:.3f} mm, change {done.change:.4f}")
        print(f"Wrote {output}: {', '.join(FILES)}")


def save(template: GroupTemplate, subjects: dict[str, Subject], output: Path, options: argparse.Namespace) -> None:
    """Write all files; the keys of ``subjects`` name the transforms."""
    image = template.image.to("cpu")
    metrics = {
        "images": [str(subject.image) for subject in subjects.values()],
        "method": options.method,
        "rounds": [asdict(done) for done in template.rounds],
        "learnreg": __version__,
    }
    with together(output) as part:
        write_image(image.data[0], image.grid, part / FILES[0])
        if image.labels is not None:
            write_image(image.labels[0].to(smallest_type(image.labels)), image.grid, part / "labels.nii.gz")
        for name, transform in zip(subjects, template.transforms, strict=True):
            write_transform(transform.to("cpu"), image.grid, part / FILES[1] / f"{name}.h5")
        save_figure(template_figure(image, title=f"mean of {len(subjects)} images"), part / FILES[2])
        (part / FILES[3]).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
