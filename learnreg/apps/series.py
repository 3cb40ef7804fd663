"""``learnreg series``: align the volumes of a 4-D image, from file to files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm.auto import tqdm

from learnreg import __version__
from learnreg.apps.output import check_unused, recorded_warnings
from learnreg.headers import read_header
from learnreg.io import read_series, to_sitk, write_image, write_sitk
from learnreg.methods.api import choose_method
from learnreg.methods.series import (
    PARAMETERS,
    RegisteredSeries,
    framewise_displacement,
    motion_parameters,
    register_series,
)
from learnreg.transforms.files import write_transform
from learnreg.typing import PathLike
from learnreg.writing import together

FILES = ("registered.nii.gz", "reference.nii.gz", "motion.tsv", "transforms", "metrics.json")


def series(
    image: PathLike,
    output: PathLike,
    *,
    method: str = "rigid",
    to: int | Literal["mean"] = "mean",
    rounds: int = 2,
    trust: tuple[str, ...] = (),
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Align the volumes of a 4-D file to their mean or to one of them.

    Writes ``registered.nii.gz`` (4-D), ``reference.nii.gz``, ``motion.tsv`` with the columns of fMRIPrep and the
    framewise displacement, ``transforms/0000.h5`` and so on, and ``metrics.json``.

    Args:
        image: The 4-D file.
        output: Folder of the results.
        method: A preset or a YAML file; ``rigid`` for motion in a scanner.
        to: ``"mean"``, or the number of a volume from 0.
        rounds: Number of registrations to the mean.
        trust: Packages whose classes a method file can name.
        device: Device that computes.
        overwrite: Replace results.
        progress: Show a progress bar; ``None`` shows one if the standard error stream is a terminal.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: The file is no series, or results are there already.
    """
    folder = Path(output)
    check_unused(folder, FILES, overwrite=overwrite)
    chosen = choose_method(method, trust=trust, device=device)
    with recorded_warnings() as noticed:
        volumes = [volume.to(device) for volume in read_series(image)]
        shown = sys.stderr.isatty() if progress is None else progress
        count = len(volumes) * (rounds if to == "mean" else 1)
        with tqdm(total=count, disable=not shown, desc="series", unit="volume") as bar:
            found = register_series(volumes, chosen, to=to, rounds=rounds, on_volume=bar.update)
    motion = np.stack([motion_parameters(part.to("cpu"), volumes[0].grid.to("cpu")) for part in found.transforms])
    distance = framewise_displacement(motion)
    metrics: dict[str, Any] = {
        "image": str(image),
        "volumes": len(volumes),
        "method": method,
        "to": to,
        "framewise_displacement_mm": {"mean": float(np.nanmean(distance)), "max": float(np.nanmax(distance))},
        "learnreg": __version__,
        **({"warnings": noticed} if noticed else {}),
    }
    _save(found, motion, metrics, folder, step=read_header(Path(image)).GetSpacing()[3])
    return metrics


def _save(
    found: RegisteredSeries, motion: NDArray[np.float64], metrics: dict[str, Any], folder: Path, *, step: float
) -> None:
    """Write all files together.

    Args:
        found: The result.
        motion: ``(T, 6)``.
        metrics: For ``metrics.json``.
        folder: Folder of the files.
        step: Time between volumes, as the header has it.
    """
    grid = found.reference.grid.to("cpu")
    joined = sitk.JoinSeries([to_sitk(volume.data[0], grid) for volume in found.volumes], 0.0, step)
    with together(folder) as part:
        write_sitk(joined, part / FILES[0])
        write_image(found.reference.data[0], grid, part / FILES[1])
        (part / FILES[2]).write_text(motion_table(motion), encoding="utf-8")
        for number, transform in enumerate(found.transforms):
            write_transform(transform.to("cpu"), grid, part / FILES[3] / f"{number:04d}.h5")
        (part / FILES[4]).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def motion_table(motion: NDArray[np.float64]) -> str:
    """Return the motion parameters as the tab-separated table of fMRIPrep; ``n/a`` is unknown.

    Example:
        >>> print(motion_table(np.zeros((1, 6))).splitlines()[1].split()[-1])
        n/a
    """
    rows = ["\t".join((*PARAMETERS, "framewise_displacement"))]
    for values, distance in zip(motion, framewise_displacement(motion), strict=True):
        last = "n/a" if math.isnan(distance) else f"{distance:.6f}"
        rows.append("\t".join([*(f"{value:.6f}" for value in values), last]))
    return "\n".join(rows) + "\n"
