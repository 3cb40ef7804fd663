"""Commands around registration: data, trainings, models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from learnreg.apps.commands.options import File, Files, Flag, Output, Trusted


def check(data: Files, /, *, quiet: Flag = False) -> None:
    """Read images or every file of a data set, and tell what is wrong.

    For example:
      learnreg check FIXED.nii.gz MOVING.nii.gz
      learnreg check DICOM_FOLDER
      learnreg check FOLDER
      learnreg check PAIRS.csv --quiet

    Args:
        data: Images (files or DICOM folders), whose geometry and intensities are printed; or one data set: a folder
            (images/, labels/), BIDS, a CSV or TSV, or a Learn2Reg dataset.json.
        quiet: What is wrong only, without the table.
    """
    from learnreg.apps import check as data_set, images

    if images.are_images(data):
        images.run(data, quiet=quiet)
    else:
        data_set.run(data[0], quiet=quiet)


def doctor() -> None:
    """Tell what this installation and machine can do, and test them by a small registration.

    For example:
      learnreg doctor
    """
    from learnreg.apps.doctor import run

    run()


def export(checkpoint: File, /, *, output: Output, overwrite: Flag = False, trust: Trusted = ()) -> None:
    """Write a trained network as one small file.

    For example:
      learnreg export runs/mine/checkpoints/best.ckpt -o mine.safetensors

    Args:
        checkpoint: The best.ckpt or last.ckpt of a run.
        output: A .safetensors file.
        overwrite: Replace the file.
        trust: A package whose classes the file of the network can name, such as mylab; may be repeated.
    """
    from learnreg.apps.export import run

    run(checkpoint, output=Path(output), overwrite=overwrite, trust=trust)


def runs(folders: Files, /) -> None:
    """Compare trainings: what differs, what each came to, and the folders of the runs.

    For example:
      learnreg runs runs/compared
      learnreg runs runs/hippocampus/first runs/hippocampus/second

    Args:
        folders: Run folders, or the folder they lie in.
    """
    from learnreg.apps.runs import run

    run([Path(folder) for folder in folders])


def methods() -> None:
    """List the classical presets and the trained models.

    For example:
      learnreg methods
    """
    from learnreg.apps.methods import run

    run()


def train(*overrides: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Train a network (Hydra; also: python train.py).

    For example:
      learnreg train experiment=quickstart
      learnreg train experiment=hippocampus network=unet trainer.max_time=00:02:00:00
      learnreg train --help

    Args:
        overrides: What to change of conf/train.yaml, and options of Hydra.
    """
    from learnreg.apps.train import main

    sys.argv = ["learnreg train", *overrides]
    main()
