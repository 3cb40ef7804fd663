"""Commands that register many images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from learnreg.apps.commands.options import (
    Block,
    Count,
    Device,
    File,
    Flag,
    Jobs,
    Length,
    Models,
    Name,
    Names,
    Number,
    Output,
    Positive,
    Quiet,
    Shape,
    Shard,
    Threads,
    Trusted,
)
from learnreg.errors import InputError


def batch(
    pairs: File,
    /,
    *,
    output: Output,
    method: Name | None = None,
    checkpoint: File | None = None,
    refine: Count = 0,
    weight: Number | None = None,
    save: Annotated[
        Sequence[Literal["transform", "warped", "figure", "metrics", "report"]],
        Parameter(consume_multiple=1, show_default="transform metrics report"),
    ] = ("transform", "metrics", "report"),
    batch: Positive = 1,
    shard: Shard = (1, 1),
    on: Literal["slurm", "ray"] | None = None,
    shards: Positive = 1,
    engine: Annotated[Sequence[str], Parameter(consume_multiple=1, metavar="KEY=VALUE...", show_default=False)] = (),
    retry: Flag = False,
    strict: Flag = False,
    trust: Trusted = (),
    device: Device = "cpu",
    jobs: Jobs = 1,
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Register the pairs of a table.

    Writes one folder a pair, results.csv and index.html, worst first, with a link to the report.html of each pair. Give
    the same command again to go on after a kill.

    For example:
      learnreg batch PAIRS.csv -o OUT
      learnreg batch PAIRS.csv -o OUT --checkpoint hippocampus --batch 4 --save transform warped
      learnreg batch PAIRS.csv -o OUT --jobs 8 --threads 1
      learnreg batch PAIRS.csv -o OUT --save transform metrics
      learnreg batch PAIRS.csv -o OUT --shard 3/8
      learnreg batch PAIRS.csv -o OUT --on slurm --shards 8 --engine timeout_min=60 cpus_per_task=4

    Args:
        pairs: A CSV with the columns fixed,moving (and name, fixed_labels, ...), see docs/scaling.md.
        output: Folder for the results.
        method: A preset (see `learnreg methods`) or a YAML file (default: deformable).
        checkpoint: A trained network, or the name of a model (see `learnreg methods`).
        refine: Classical steps from the network's answer.
        weight: How much a network of network=conditioned is to regularize.
        save: What to write for each pair; a report takes a second or more, and some MB.
        batch: Pairs that go through a network at once.
        shard: Only every N-th pair from the I-th on, such as 3/8.
        on: Run all shards on SLURM (through submitit) or on a Ray cluster, and wait.
        shards: With --on: number of shards.
        engine: With --on: parameters of submitit, such as timeout_min=60 slurm_partition=cpu cpus_per_task=4, or of
            ray.init, such as address=auto.
        retry: Try the pairs that failed before again.
        strict: Exit with status 1 if the verdict on a pair is FAIL.
        trust: A package whose classes the file of a method or network can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        jobs: Processes.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.batch import Settings, run, run_shards
    from learnreg.apps.engines import Engine

    settings = Settings(
        Path(output),
        method,
        None if checkpoint is None else str(checkpoint),
        refine,
        weight,
        tuple(dict.fromkeys(save)),
        tuple(trust),
        device,
        batch,
    )
    if on is not None and strict:
        raise InputError("--strict judges the pairs that this process registers; read results.csv after --on.")
    if on is not None:
        run_shards(pairs, settings, Engine(on, shards, engine), jobs=jobs, threads=threads, retry=retry, quiet=quiet)
    else:
        run(pairs, settings, shard=shard, jobs=jobs, threads=threads, retry=retry, strict=strict, quiet=quiet)


def bids(
    bids: File,
    output: Annotated[str | Path, Parameter(metavar="OUT")],
    level: Literal["participant", "group"],
    /,
    *,
    participant_label: Annotated[
        Sequence[str], Parameter(consume_multiple=1, metavar="LABEL...", show_default=False)
    ] = (),
    to: File | None = None,
    space: Name | None = None,
    method: Name | None = None,
    checkpoint: File | None = None,
    refine: Count = 0,
    trust: Trusted = (),
    device: Device = "cpu",
    jobs: Jobs = 1,
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Register the images of a BIDS data set (BIDS App).

    For example:
      learnreg bids STUDY DERIVATIVES participant --to TEMPLATE.nii.gz
      learnreg bids STUDY DERIVATIVES participant --to TEMPLATE.nii.gz --participant-label 01 02 --method affine
      learnreg bids STUDY DERIVATIVES group

    Args:
        bids: The data set.
        output: Folder of the derivatives.
        level: Register (participant), or collect the measures in one table (group).
        participant_label: Only these, such as 01 02.
        to: The reference, such as a template; it is the fixed image.
        space: Its name in the names of files (default: that of FILE).
        method: A preset (see `learnreg methods`) or a YAML file (default: deformable).
        checkpoint: A trained network, or the name of a model (see `learnreg methods`).
        refine: Classical steps from the network's answer.
        trust: A package whose classes the file of a method or network can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        jobs: Processes.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.batch import Settings
    from learnreg.apps.bids import collect, run, work_of

    if level == "group":
        collect(Path(bids), Path(output))
        return
    settings = Settings(
        work_of(Path(output)),
        method,
        None if checkpoint is None else str(checkpoint),
        refine,
        save=("transform", "warped", "metrics"),
        trust=tuple(trust),
        device=device,
    )
    run(
        Path(bids),
        Path(output),
        to=to,
        labels=participant_label,
        space=space,
        settings=settings,
        jobs=jobs,
        threads=threads,
        quiet=quiet,
    )


def evaluate(
    data: File,
    /,
    *,
    output: Output | None = None,
    method: Names = (),
    checkpoint: Models = (),
    refine: Count = 0,
    block: Block | None = None,
    shape: Shape | None = None,
    spacing: Length = 1.0,
    submission: Literal["learn2reg"] | None = None,
    overwrite: Flag = False,
    trust: Trusted = (),
    device: Device = "cpu",
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Compare methods on pairs, by labels, landmarks or intensities.

    Without a table of pairs, each image is registered to the next one in reversed order.

    For example:
      learnreg evaluate FOLDER --method affine --method deformable -o TABLE
      learnreg evaluate FOLDER --checkpoint best.ckpt --refine 30
      learnreg evaluate FOLDER --block 160:200 --shape 64 64 64 --spacing 1 --method fast
      learnreg evaluate dataset.json --method deformable --submission learn2reg -o OUT

    Args:
        data: A folder (images/, labels/), a CSV or a Learn2Reg dataset.json.
        output: Folder for table.md, cases.csv and metrics.json.
        method: A preset or YAML file; may be given several times.
        checkpoint: A trained network: one-shot, and refined with --refine; repeat to compare.
        refine: Classical steps from the network's answer.
        block: Positions A to B-1 in the data's order (default: all).
        shape: Bring images to this shape (z y x), centered.
        spacing: In mm, with --shape.
        submission: Also write the displacements of one method as the challenge takes them, to OUT/submission.
        overwrite: Replace results that are already in OUT.
        trust: A package whose classes the file of a method or network can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.evaluate import Settings, run

    settings = Settings(
        str(data),
        list(method),
        [str(file) for file in checkpoint],
        refine,
        block,
        None if shape is None else list(shape),
        spacing,
        list(trust),
        device,
    )
    run(
        settings,
        output=None if output is None else Path(output),
        submission=submission is not None,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )


def series(
    image: File,
    /,
    *,
    output: Output,
    method: Name = "rigid",
    to: Annotated[str, Parameter(metavar="mean|N")] = "mean",
    rounds: Positive = 2,
    overwrite: Flag = False,
    trust: Trusted = (),
    device: Device = "cpu",
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Align the volumes of a 4-D file to their mean or to one of them.

    Writes registered.nii.gz (4-D), reference.nii.gz, motion.tsv (translations in mm, rotations in radians, framewise
    displacement) and a transform for each volume.

    For example:
      learnreg series BOLD.nii.gz -o OUT
      learnreg series PERFUSION.nii.gz -o OUT --to 0 --method deformable

    Args:
        image: The 4-D file.
        output: Folder for the results.
        method: A preset or a YAML file.
        to: The mean, or the number of a volume from 0.
        rounds: Registrations to the mean.
        overwrite: Replace results that are already in OUT.
        trust: A package whose classes the file of a method can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.register import set_device
    from learnreg.apps.series import series as work

    if to != "mean" and not to.isdigit():
        raise InputError(f"--to is mean, or the number of a volume from 0, got {to!r}.")
    found = work(
        image,
        output,
        method=method,
        to="mean" if to == "mean" else int(to),
        rounds=rounds,
        trust=tuple(trust),
        device=set_device(device, threads),
        overwrite=overwrite,
        progress=False if quiet else None,
    )
    if not quiet:
        moved = found["framewise_displacement_mm"]
        print(f"{found['volumes']} volumes, framewise displacement {moved['mean']:.2f} mm, at most {moved['max']:.2f}")
        print(f"Wrote {output}")


def template(
    data: File,
    /,
    *,
    output: Output,
    method: Name = "fast",
    rounds: Positive = 4,
    block: Block | None = None,
    overwrite: Flag = False,
    trust: Trusted = (),
    device: Device = "cpu",
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Build the mean of a group of images.

    Writes template.nii.gz, its labels if the images have some, a transform to each image, and a figure.

    For example:
      learnreg template FOLDER -o OUT
      learnreg template FOLDER -o OUT --method brain --rounds 6 --block 0:20

    Args:
        data: A folder of images (with labels/, if any), a CSV or a dataset.json.
        output: Folder for the results.
        method: A preset or YAML file.
        rounds: Times all are registered.
        block: Positions A to B-1 in the data's order (default: all).
        overwrite: Replace results that are already in OUT.
        trust: A package whose classes the file of a method or network can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.template import run

    run(
        data,
        output=Path(output),
        method=method,
        rounds=rounds,
        block=block,
        overwrite=overwrite,
        trust=trust,
        device=device,
        threads=threads,
        quiet=quiet,
    )
