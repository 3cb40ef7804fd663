"""``register_files``: register one pair from files to files in one call, for pipelines such as nipype and snakemake."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnreg.apps.register import FILES, INVERSE, run
from learnreg.typing import PathLike


@dataclass(frozen=True)
class RegisteredFiles:
    """Files that :func:`register_files` wrote.

    Args:
        warped: The moving image on the grid of the fixed one.
        transform: From the fixed to the moving space, for ITK, ANTs and 3D Slicer.
        inverse: From the moving to the fixed space; ``None`` unless asked for.
        figure: The images before and after; ``None`` if it could not be drawn.
        metrics: What ``metrics.json`` holds.

    Example:
        >>> found = RegisteredFiles(Path("out/warped.nii.gz"), Path("out/transform.h5"), None, None, {"seconds": 1.0})
        >>> found.metrics["seconds"]
        1.0
    """

    warped: Path
    transform: Path
    inverse: Path | None
    figure: Path | None
    metrics: dict[str, Any]


def register_files(
    fixed: PathLike,
    moving: PathLike,
    output: PathLike,
    *,
    method: str | None = None,
    checkpoint: PathLike | None = None,
    refine: int = 0,
    weight: float | None = None,
    initial: PathLike | None = None,
    fixed_mask: PathLike | None = None,
    moving_mask: PathLike | None = None,
    fixed_labels: PathLike | None = None,
    moving_labels: PathLike | None = None,
    landmarks: Sequence[PathLike] = (),
    inverse: bool = False,
    fill: float | None = None,
    trust: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
) -> RegisteredFiles:
    """Register one pair, from files to files, as ``learnreg register`` does.

    All results appear together, or none if an error is raised.

    Args:
        fixed: The reference: an image file or a DICOM folder.
        moving: The image to align.
        output: Folder of the results; it is made.
        method: A preset or a YAML file; ``None`` is ``deformable``.
        checkpoint: A trained network in place of a method.
        refine: Iterations that refine the answer of the network.
        weight: Regularization weight of a conditioned network.
        initial: ``"com"``, ``"moments"``, ``"identity"``, the name of a model, or the file of a transform.
        fixed_mask: Where the fixed image counts.
        moving_mask: Where the moving image counts.
        fixed_labels: Segmentation of the fixed image, to measure overlap.
        moving_labels: Segmentation of the moving image.
        landmarks: One file with the points of both images, or two files.
        inverse: Write the inverse transform too.
        fill: Value beyond the moving image; ``None`` is its background.
        trust: Packages whose classes a method file can name.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        threads: Threads of the CPU; ``None`` leaves them.
        overwrite: Replace results that are there already.

    Returns:
        The paths of the files and the metrics.

    Raises:
        MissingFileError: A file does not exist.
        InputError: A file or an option cannot be used; the message says why.

    Example:
        >>> grid = learnreg.Grid.regular((16, 16, 16))
        >>> ball = (grid.points.norm(dim=-1) < 5).float()
        >>> learnreg.write_image(ball, grid, "fixed.nii.gz")
        >>> learnreg.write_image(ball.roll(2, -1), grid, "moving.nii.gz")
        >>> done = register_files("fixed.nii.gz", "moving.nii.gz", "out", method="rigid")
        >>> done.warped.name, done.transform.exists(), done.metrics["after"]["ncc"] > 0.9
        ('warped.nii.gz', True, True)
    """
    folder = Path(output)
    run(
        fixed,
        moving,
        output=folder,
        method=method,
        checkpoint=checkpoint,
        refine=refine,
        weight=weight,
        initial=initial,
        labels=(fixed_labels, moving_labels),
        masks=(fixed_mask, moving_mask),
        landmarks=landmarks,
        inverse=inverse,
        fill=fill,
        overwrite=overwrite,
        trust=trust,
        device=device,
        threads=threads,
        quiet=True,
    )
    warped, transform, figure, metrics = (folder / name for name in FILES)
    return RegisteredFiles(
        warped,
        transform,
        folder / INVERSE if inverse and (folder / INVERSE).exists() else None,
        figure if figure.exists() else None,
        json.loads(metrics.read_text(encoding="utf-8")),
    )
