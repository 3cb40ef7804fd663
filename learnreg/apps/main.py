"""The command ``learnreg``: argument parsing; heavy imports happen only when a command runs."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from learnreg import __version__
from learnreg.apps.environment import let_threads_sleep
from learnreg.apps.errors import reporting_errors

FILL = "value beyond the moving image (default: 0, or its lowest value if that is negative, as of air in a CT)"


OF_TRANSFORMS = {
    "compose": "write several transforms as one",
    "invert": "write the inverse of transforms, from moving to fixed, and print its error",
    "convert": "write a transform in another format: .h5, .tfm, .txt, .mat (linear), .nii.gz (a field in mm)",
    "jacobian": "write the change of volume at each voxel",
}
APPLY = """
A transform maps points of the fixed image to points of the moving image, and so an image the other way:

    points   fixed  ---- T ---->  moving         image   moving  ---- T ---->  grid of fixed

examples:
  learnreg apply OUT/transform.h5 moving.nii.gz -r fixed.nii.gz -o warped.nii.gz
  learnreg apply OUT/transform.h5 moving_seg.nii.gz -r fixed.nii.gz -o seg.nii.gz --labels
  learnreg apply to_template.h5 to_visit.h5 scan.nii.gz -r template.nii.gz -o out.nii.gz    (interpolated once)
  learnreg apply OUT/transform.h5 --points fixed.csv -o moving.csv
  learnreg apply OUT/transform.h5 --inverse --points moving.csv -o fixed.csv
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    let_threads_sleep()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # the rest is Hydra's
        from learnreg.apps.train import main as train

        sys.argv = ["learnreg train", *given[1:]]
        train()
        return
    options = parser().parse_args(given)
    warnings.formatwarning = _one_line_warning
    with reporting_errors(debug=options.debug, remedy="--trust {}"):
        _run(options)


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {message}\n"


def _run(options: argparse.Namespace) -> None:
    module = "transforms" if options.command in OF_TRANSFORMS else options.command
    import_module(f"learnreg.apps.{module}").run(options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    trusting = argparse.ArgumentParser(add_help=False)
    trusting.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package whose classes the file of a method or network can name, such as mylab; may be repeated",
    )
    computing = argparse.ArgumentParser(add_help=False)
    computing.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, mps, or auto for the fastest (default: cpu)"
    )
    computing.add_argument("--threads", type=_positive, help="CPU threads (default: all cores)")
    computing.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    solving = argparse.ArgumentParser(add_help=False)
    solving.add_argument(
        "--refine", type=_count, default=0, metavar="N", help="classical steps from the network's answer"
    )

    top = argparse.ArgumentParser(prog="learnreg", description="Classical and learned medical image registration.")
    top.add_argument("--version", action="version", version=f"learnreg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    register = commands.add_parser(
        "register", parents=[common, trusting, computing, solving], help="align one image to another"
    )
    register.add_argument("fixed", help="the reference: an image file or a DICOM folder")
    register.add_argument("moving", help="the image to align")
    register.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    register.add_argument("--method", help="a preset (see `learnreg methods`) or a YAML file (default: deformable)")
    register.add_argument(
        "--checkpoint", metavar="FILE", help="a trained network, or the name of a model (see `learnreg methods`)"
    )
    register.add_argument(
        "--weight", type=float, metavar="W", help="how much a network of network=conditioned is to regularize"
    )
    register.add_argument("--initial", metavar="FILE", help="an ITK transform to begin with, fixed to moving")
    for which in ("fixed", "moving"):
        register.add_argument(
            f"--{which}-labels", metavar="FILE", help=f"segmentation of the {which} image, to measure overlap"
        )
        register.add_argument(f"--{which}-mask", metavar="FILE", help=f"where the {which} image counts")
    register.add_argument(
        "--landmarks",
        metavar="FILE",
        nargs="+",
        help="one CSV with the points of both images, or two files, fixed and moving: their distance is measured, "
        "and a method with a landmark term (lung) is guided by them",
    )
    register.add_argument("--inverse", action="store_true", help="also write inverse.h5, from moving to fixed")
    register.add_argument("--fill", type=float, metavar="VALUE", help=FILL)
    register.add_argument("--overwrite", action="store_true", help="replace results that are already in OUT")

    batch = commands.add_parser(
        "batch", parents=[common, trusting, computing, solving], help="register the pairs of a table"
    )
    batch.add_argument(
        "pairs", help="a CSV with the columns fixed,moving (and name, fixed_labels, ...), see docs/scaling.md"
    )
    batch.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="folder for one folder a pair and results.csv"
    )
    batch.add_argument("--method", help="a preset (see `learnreg methods`) or a YAML file (default: deformable)")
    batch.add_argument("--checkpoint", metavar="FILE", help="a trained network, or the name of a model")
    batch.add_argument("--weight", type=float, metavar="W", help="for a network of network=conditioned")
    batch.add_argument(
        "--save",
        nargs="+",
        choices=("transform", "warped", "figure", "metrics"),
        default=["transform", "metrics"],
        help="what to write for each pair (default: transform metrics)",
    )
    batch.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="pairs that go through a network at once (default: 1)"
    )
    batch.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (default: 1)")
    batch.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only every N-th pair from the I-th on, such as 3/8"
    )
    batch.add_argument(
        "--on",
        choices=("slurm", "ray"),
        help="run all shards on SLURM (through submitit) or on a Ray cluster, and wait",
    )
    batch.add_argument("--shards", type=_positive, default=1, metavar="N", help="with --on: number of shards")
    batch.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="with --on: parameters of submitit, such as timeout_min=60 slurm_partition=cpu cpus_per_task=4, or of "
        "ray.init, such as address=auto",
    )
    batch.add_argument("--retry", action="store_true", help="try the pairs that failed before again")

    bids = commands.add_parser(
        "bids", parents=[common, trusting, computing, solving], help="register the images of a BIDS data set (BIDS App)"
    )
    bids.add_argument("bids", metavar="BIDS", help="the data set")
    bids.add_argument("output", metavar="OUT", help="folder of the derivatives")
    bids.add_argument("level", choices=("participant", "group"), help="register, or collect the measures in one table")
    bids.add_argument("--participant-label", nargs="+", default=[], metavar="LABEL", help="only these, such as 01 02")
    bids.add_argument("--to", metavar="FILE", help="the reference, such as a template; it is the fixed image")
    bids.add_argument("--space", metavar="NAME", help="its name in the names of files (default: that of FILE)")
    bids.add_argument("--method", help="a preset (see `learnreg methods`) or a YAML file (default: deformable)")
    bids.add_argument("--checkpoint", metavar="FILE", help="a trained network, or the name of a model")
    bids.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (default: 1)")

    evaluate = commands.add_parser(
        "evaluate", parents=[common, trusting, computing, solving], help="compare methods on labeled pairs"
    )
    evaluate.add_argument("data", help="a folder (images/, labels/), a CSV or a Learn2Reg dataset.json")
    evaluate.add_argument("-o", "--output", metavar="OUT", help="folder for table.md, cases.csv and metrics.json")
    evaluate.add_argument(
        "--method", action="append", default=[], help="a preset or YAML file; may be given several times"
    )
    evaluate.add_argument(
        "--checkpoint",
        metavar="FILE",
        action="append",
        default=[],
        help="a trained network: one-shot, and refined with --refine; repeat to compare",
    )
    evaluate.add_argument(
        "--block", type=_block, metavar="A:B", help="positions A to B-1 in the data's order (default: all)"
    )
    evaluate.add_argument(
        "--shape", type=_count, nargs="+", metavar="N", help="bring images to this shape (z y x), centered"
    )
    evaluate.add_argument("--spacing", type=_length, default=1.0, help="mm, with --shape (default: 1)")

    check = commands.add_parser("check", parents=[common], help="read every file of a data set, and tell what is wrong")
    check.add_argument("data", help="a folder (images/, labels/), BIDS, a CSV or TSV, or a Learn2Reg dataset.json")
    check.add_argument("--quiet", action="store_true", help="what is wrong only, without the table")

    apply = commands.add_parser(
        "apply",
        parents=[common],
        help="resample an image, or map points, through saved transforms",
        description="Resample an image, or map points, through saved transforms.",
        epilog=APPLY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    apply.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="one or more transforms (.h5, .tfm, .mat, or a displacement field in mm), the first applied to points "
        "first; then, without --points, the image",
    )
    apply.add_argument("-r", "--reference", metavar="FIXED", help="the image whose grid the result has")
    apply.add_argument("-o", "--output", required=True, metavar="OUT", help="the resampled image, or a CSV of points")
    apply.add_argument("--inverse", action="store_true", help="map from moving to fixed")
    apply.add_argument("--points", metavar="FILE", help="points to map: CSV, elastix' .txt, Slicer's .fcsv, .mrk.json")
    apply.add_argument("--labels", action="store_true", help="nearest neighbor, integers: for segmentations")
    apply.add_argument("--interpolation", choices=("linear", "nearest"), help="default: linear; nearest with --labels")
    apply.add_argument("--fill", type=float, metavar="VALUE", help=FILL)
    apply.add_argument("--overwrite", action="store_true", help="replace OUT")

    for name in ("compose", "invert", "convert"):
        purpose = OF_TRANSFORMS[name]
        command = commands.add_parser(name, parents=[common], help=purpose, description=f"{purpose.capitalize()}.")
        _add_transforms(command, several=name != "convert")
        grid = "the moving image" if name == "invert" else "the fixed image (default: the grid of the first field)"
        command.add_argument("-r", "--reference", metavar="IMAGE", help=f"where a field is sampled: {grid}")
    jacobian = commands.add_parser("jacobian", parents=[common], help=OF_TRANSFORMS["jacobian"])
    _add_transforms(jacobian, several=True)
    jacobian.add_argument("-r", "--reference", required=True, metavar="FIXED", help="the fixed image")
    jacobian.add_argument("--log", action="store_true", help="the logarithm of the determinant: 0 is no change")
    jacobian.add_argument("--inverse", action="store_true", help="of the map from moving to fixed")

    template = commands.add_parser(
        "template", parents=[common, trusting, computing], help="build the mean of a group of images"
    )
    template.add_argument("data", help="a folder of images (with labels/, if any), a CSV or a dataset.json")
    template.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    template.add_argument("--method", default="fast", help="a preset or YAML file (default: fast)")
    template.add_argument(
        "--rounds", type=_positive, default=4, metavar="N", help="times all are registered (default: 4)"
    )
    template.add_argument("--block", type=_block, metavar="A:B", help="positions A to B-1 in the data's order")
    template.add_argument("--overwrite", action="store_true", help="replace results that are already in OUT")

    export = commands.add_parser("export", parents=[common, trusting], help="write a trained network as one small file")
    export.add_argument("checkpoint", help="best.ckpt or last.ckpt of a run")
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="a .safetensors file")
    export.add_argument("--overwrite", action="store_true", help="replace the file")

    runs = commands.add_parser("runs", parents=[common], help="compare trainings: what differs, and what each came to")
    runs.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or the folder they lie in")

    commands.add_parser("methods", parents=[common], help="list the classical presets and the trained models")
    commands.add_parser("train", help="train a network: learnreg train experiment=... (Hydra; also: python train.py)")
    return top


def _add_transforms(command: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the arguments of a command that reads transforms and writes one file."""
    command.add_argument(
        "transforms",
        nargs="+" if several else 1,
        metavar="TRANSFORM",
        help="fixed to moving" + (", the first applied to points first" if several else ""),
    )
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write")
    command.add_argument("--overwrite", action="store_true", help="replace OUT")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _length(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a length in mm above 0, got {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    own, _, count = text.partition("/")
    if not (own.isdigit() and count.isdigit() and 1 <= int(own) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 3/8, got {text!r}")
    return int(own), int(count)


def _block(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected A:B with A < B, such as 160:200, got {text!r}")
    return int(first), int(last)


if __name__ == "__main__":
    main()
