"""Benchmarks against peers, in one run: ``python scripts/benchmark.py pieces|hippocampus [--help]``.

Peers are optional (``pip install -e '.[peers]'``); one that is not installed is left out with a note.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from learnreg.data.datasets import Case, centered, reversed_pairs
from learnreg.data.formats import read_subjects
from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.fields import exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.methods import Method, OneShotMethod, Registration, load_method
from learnreg.methods.evaluation import Row, evaluate, table
from learnreg.networks.checkpoint import load_checkpoint
from learnreg.separable import apply_separable, box_matrix
from learnreg.similarity import lncc_loss
from learnreg.transforms.itk import read_transform
from learnreg.warping import sample


class Greedy(Method):
    """``picsl-greedy``: affine, then its compositive solver with NCC 2x2x2.

    Args:
        iterations: Of the deformable stage, one number a level.
        sigmas: Gaussian smoothing of the update and of the field.
        threads: CPU threads.
    """

    def __init__(self, iterations: str, sigmas: str, threads: int) -> None:
        self.settings = f"-n {iterations} -s {sigmas}"
        self.threads = threads

    def __call__(self, fixed: Image, moving: Image, **kwargs: object) -> Registration:
        from picsl_greedy import Greedy3D

        with tempfile.TemporaryDirectory() as folder:
            names = {name: str(Path(folder) / name) for name in ("f.nii", "m.nii", "w.nii", "c.nii", "a.mat")}
            for name, image in (("f.nii", fixed), ("m.nii", moving)):
                scaled = normalized(image)
                write_image(1000 * scaled.data[0], scaled.grid, names[name])
            pair = f"-i {names['f.nii']} {names['m.nii']} -m NCC 2x2x2 -threads {self.threads} -V 0"
            solver = Greedy3D()
            began = time.perf_counter()
            solver.execute(f"-d 3 -a {pair} -n 100x50x10 -ia-image-centers -o {names['a.mat']}")
            solver.execute(f"-d 3 {pair} {self.settings} -it {names['a.mat']} -o {names['w.nii']}")
            seconds = time.perf_counter() - began
            solver.execute(f"-d 3 -rf {names['f.nii']} -r {names['w.nii']} {names['a.mat']} -rc {names['c.nii']} -V 0")
            return Registration(read_transform(names["c.nii"]), fixed, moving, seconds=seconds)


def hippocampus(options: argparse.Namespace) -> None:
    """Learn2Reg's hippocampus protocol on a block of files, every method on a pair before the next pair."""
    methods: dict[str, Method] = {name: load_method(name) for name in options.method}
    if options.checkpoint:
        checkpoint = load_checkpoint(options.checkpoint)
        methods["one-shot"] = OneShotMethod(checkpoint)
        methods[f"one-shot + refine {options.refine}"] = OneShotMethod(checkpoint, refine=options.refine)
    if find_spec("picsl_greedy"):
        methods["greedy, default"] = Greedy("100x50x10", "2vox 1vox", options.threads)
        methods["greedy, best found"] = Greedy("100x100x40", "1.5vox 0.5vox", options.threads)
    else:
        print("greedy is left out: pip install -e '.[peers]'")
    space = ModelSpace(1.0, (64, 64, 64))
    pairs = reversed_pairs(read_subjects(options.data)[options.first : options.last])
    rows: list[Row] = []
    for fixed, moving in tqdm(pairs):
        images = [centered(space.place(subject.read())) for subject in (fixed, moving)]
        rows += evaluate([Case(f"{fixed.name} < {moving.name}", *images)], methods)
    print(f"{len(pairs)} pairs, {options.threads} threads")
    print(table(rows))


def pieces(options: argparse.Namespace) -> None:
    """CPU time of the hot pieces at one size, forward and backward, beside what others are built from."""
    n = options.size
    grid, coarse = Grid.regular((n, n, n)), Grid.regular((n // 2, n // 2, n // 2), 2.0)
    fixed, warped = torch.rand(1, 1, n, n, n), torch.rand(1, 1, n, n, n, requires_grad=True)
    points = (grid.points + torch.rand(1, n, n, n, 3)).requires_grad_()
    velocity = torch.rand(1, 3, n, n, n).requires_grad_()
    half = torch.rand(1, 3, *coarse.shape).requires_grad_()
    boxes = [box_matrix(n, 9)] * 3

    def pooled(x: torch.Tensor) -> torch.Tensor:
        for axis in range(3):
            kernel, padding = [1, 1, 1], [0, 0, 0]
            kernel[axis], padding[axis] = 9, 4
            x = F.avg_pool3d(x, kernel, 1, padding, count_include_pad=False)
        return x

    cases: dict[str, Callable[[], torch.Tensor]] = {
        "box 9^3, matrices": lambda: apply_separable(warped, boxes),
        "box 9^3, avg_pool3d an axis": lambda: pooled(warped),
        "LNCC 9^3": lambda: lncc_loss(warped, fixed),
        "warp": lambda: sample(fixed, grid, points),
        "exponential, 7 steps": lambda: exponential(velocity, grid, steps=7),
        "exponential, 7 steps, half resolution": lambda: exponential(half, coarse, steps=7),
    }
    if find_spec("monai"):
        from monai.losses import LocalNormalizedCrossCorrelationLoss

        loss = LocalNormalizedCrossCorrelationLoss(kernel_size=9)
        cases["LNCC 9^3, MONAI"] = lambda: loss(warped, fixed)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats + 1):  # interleaved; the first round warms up
        for name, case in cases.items():
            began = time.process_time()
            case().sum().backward()
            times[name].append(time.process_time() - began)
    print(f"{n}^3, {options.threads} threads, CPU seconds forward and backward, median of {options.repeats}")
    for name, values in times.items():
        print(f"| {name:38} | {statistics.median(values[1:]):.4f} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    small = commands.add_parser("pieces")
    small.add_argument("--size", type=int, default=64)
    small.add_argument("--repeats", type=int, default=9)
    small.set_defaults(run=pieces)
    real = commands.add_parser("hippocampus")
    real.add_argument("data", help="the folder hippocampus of LEARNREG_DATA")
    real.add_argument("--method", action="append", default=[])
    real.add_argument("--checkpoint")
    real.add_argument("--refine", type=int, default=30)
    real.add_argument("--first", type=int, default=160)
    real.add_argument("--last", type=int, default=200)
    real.set_defaults(run=hippocampus)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
