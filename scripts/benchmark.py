"""Benchmarks against peers, in one run: ``python scripts/benchmark.py hippocampus DATA``.

Others are ``brain``, ``training``, ``blocks``, ``ranks``, ``data``, ``pieces``, ``shares``, ``flow`` and
``iterations``; ``--help`` has their options.
Peers are optional (``pip install -e '.[peers]'``); one that is not installed is left out with a note.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from unittest.mock import patch

import peers
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from learnreg.configs.schema import fastest_precision
from learnreg.data.datamodule import RegistrationData
from learnreg.data.datasets import Case, PairDataset, centered, collate, reversed_pairs
from learnreg.data.formats import Subject, read_subjects
from learnreg.data.preprocessing import ModelSpace, normalized
from learnreg.data.store import ImageStore
from learnreg.data.synthesis import changed_intensities, random_velocity
from learnreg.fields import compose, exponential
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.kernels import compiled
from learnreg.memory import peak_memory
from learnreg.methods import Method, OneShotMethod, load_method
from learnreg.methods.evaluation import Row, evaluate, table
from learnreg.metrics import score
from learnreg.networks import Pyramid, UNet
from learnreg.networks.checkpoint import load_checkpoint
from learnreg.objective import Objective, Penalty
from learnreg.optimization import BSplineParametrization, DenseParametrization, Parametrization
from learnreg.regularization import Bending, Curvature, Diffusion, Elasticity, Folding, LogJacobian, TotalVariation
from learnreg.sampling import sample
from learnreg.similarity import LNCC, MIND, MSE, NCC, NGF, SSIM, CorrelationRatio, MutualInformation, Similarity
from learnreg.training import RegistrationModule
from learnreg.training.blocks import compile_blocks, recompute_blocks
from learnreg.transforms import BSpline, Kernel, kernel_lattice, spline_lattice
from learnreg.warping import warp

Piece = Callable[[], torch.Tensor]
PLAIN = "learnreg without kernels"  # what runs without Numba


def hippocampus(options: argparse.Namespace) -> None:
    """Learn2Reg's hippocampus protocol on a block of files, every method on a pair before the next pair."""
    methods: dict[str, Method] = {name: load_method(name) for name in options.method}
    if options.checkpoint:
        checkpoint = load_checkpoint(options.checkpoint)
        methods["one-shot"] = OneShotMethod(checkpoint)
        methods[f"one-shot + refine {options.refine}"] = OneShotMethod(checkpoint, refine=options.refine)
    if find_spec("picsl_greedy"):
        methods["greedy, default"] = peers.Greedy("100x50x10", "2vox 1vox", options.threads)
        methods["greedy, best found"] = peers.Greedy("100x100x40", "1.5vox 0.5vox", options.threads)
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


def brain(options: argparse.Namespace) -> None:
    """Whole brains at 1 mm: fields that are known, and pairs of people with 138 labels, in native space."""
    subjects = read_subjects(options.data)
    missing = sorted(set(options.subject) - {subject.name for subject in subjects})
    if missing:
        raise SystemExit(f"{options.data} has no {', '.join(missing)}; it has {', '.join(s.name for s in subjects)}.")
    chosen = [subject for subject in subjects if subject.name in options.subject]
    methods: dict[str, Method] = {name: load_method(name) for name in options.method}
    if options.alone:
        print("the peers are left out, as asked")
    elif find_spec("picsl_greedy"):
        methods["greedy, default"] = peers.Greedy("100x50x10", "2vox 1vox", options.threads)
        methods["greedy, best found"] = peers.Greedy("100x100x40", "1.5vox 0.5vox", options.threads)
    else:
        print("greedy is left out: pip install -e '.[peers]'")
    if find_spec("ants") and not options.alone:
        methods["ANTs SyN, default"] = peers.Ants(options.threads)
        if options.slow:  # not "SyNCC", of up to 1200 iterations at half the resolution: an hour did not do for a pair
            settings = {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (100, 70, 20)}
            methods["ANTs SyN, cross-correlation"] = peers.Ants(options.threads, **settings)
    elif not options.alone:
        print("ANTs is left out: pip install -e '.[peers]'")
    for title, cases in (
        ("known fields", (known_field(subject, number) for number, subject in enumerate(chosen))),
        ("between people", (between(*pair) for pair in zip(chosen, chosen[1:] + chosen[:1], strict=True))),
    ):
        rows: list[Row] = []
        for case in tqdm(cases, total=len(chosen), desc=title):
            rows += evaluate([case], methods, distances=False)
        print(f"{title}: {len(chosen)} pairs, {options.threads} threads; an image is {megabytes(case.fixed):.0f} MB")
        print(table(rows), flush=True)


def known_field(subject: Subject, seed: int) -> Case:
    """A brain and itself under a random diffeomorphism (95 % below 6 mm), bias field, gamma and noise."""
    fixed = normalized(ModelSpace(1.0, (160, 192, 160)).place(subject.read()))
    generator = torch.Generator().manual_seed(seed)
    velocity = random_velocity(fixed.grid, magnitude=6.0, smoothness=12.0, generator=generator)
    moving = changed_intensities(warp(fixed, velocity.inverse(), fixed.grid), generator=generator)
    return Case(subject.name, fixed, moving, velocity)


def between(fixed: Subject, moving: Subject) -> Case:
    """Two people as they were scanned."""
    return Case(f"{fixed.name} < {moving.name}", fixed.read(), moving.read())


def megabytes(image: Image) -> float:
    """In float32."""
    return 4 * image.data.numel() / 1e6


def pieces(options: argparse.Namespace) -> None:
    """CPU time of the hot pieces at one size, forward and backward, beside the same of installed peers.

    "In a level" is the cost per iteration of a solver, which computes once what the fixed image and the grid decide.
    """
    n = options.size
    generator = torch.Generator().manual_seed(0)
    grid, coarse = Grid.regular((n, n, n)), Grid.regular((n // 2, n // 2, n // 2), 2.0)
    fixed = torch.rand(1, 1, n, n, n, generator=generator)
    warped = torch.rand(1, 1, n, n, n, generator=generator).requires_grad_()
    velocity = torch.rand(1, 3, n, n, n, generator=generator).requires_grad_()
    half = torch.rand(1, 3, *coarse.shape, generator=generator).requires_grad_()
    lattice, kernels = spline_lattice(grid, 8.0), kernel_lattice(grid, 8)
    spline = torch.rand(1, 3, *lattice.shape, generator=generator).requires_grad_()
    basis = BSpline(spline, lattice).basis_on(grid)
    kernel = torch.rand(1, 3, *kernels.shape, generator=generator).requires_grad_()
    similarities = [MSE(), LNCC(9), LNCC(9, kernel="gaussian"), NCC(), MutualInformation(), CorrelationRatio()]
    similarities += [NGF(), MIND(), SSIM()]
    regularizers = [Diffusion(), Bending(), Curvature(), Elasticity(), TotalVariation(), Folding(), LogJacobian()]

    def moved() -> torch.Tensor:
        return sample(fixed, grid, grid.points + velocity.movedim(1, -1))

    groups: dict[str, dict[str, Piece]] = {
        "warp": {"learnreg": moved},
        "exponential": {
            **{f"learnreg, {k} squarings": partial(exponential, velocity, grid, steps=k) for k in (3, 4, 7)},
            "learnreg, 3 squarings, half resolution": partial(exponential, half, coarse, steps=3),
        },
        "B-spline, control points every 8 voxels": {
            "learnreg": lambda: BSpline(spline, lattice).displacement(grid),
            "learnreg, in a level": lambda: BSpline(spline, lattice, basis=basis).displacement(grid),
        },
        "Wendland kernel, control points every 8 voxels": {
            "learnreg": lambda: Kernel(kernel, kernels).displacement(grid),
        },
    }
    for similarity in similarities:
        groups[f"{type(similarity).__name__} {similarity.extra_repr()}".strip()] = {
            "learnreg": partial(similarity, warped, fixed),
            "learnreg, in a level": partial(similarity.prepare(fixed), warped),
        }
    for regularizer in regularizers:
        groups[type(regularizer).__name__] = {"learnreg": partial(regularizer, velocity, grid)}
    for cases in groups.values():
        cases[PLAIN] = next(iter(cases.values()))
    for key, case in peers.pieces(fixed, warped, velocity, spline).items():
        group, peer = key
        groups[next(name for name in groups if name.startswith(group))][peer] = case
    print_times(groups, options)


def print_times(groups: dict[str, dict[str, Piece]], options: argparse.Namespace) -> None:
    """Interleave the cases, print medians and the ratio to the first of each group."""
    times: dict[tuple[str, str], list[float]] = {(g, c): [] for g, cases in groups.items() for c in cases}
    for _ in tqdm(range(options.repeats + 1)):  # the first round warms up
        for group, cases in groups.items():
            for name, case in cases.items():
                kernels = patch.object(compiled, "available", lambda: False) if name == PLAIN else nullcontext()
                began = time.process_time()
                with kernels:
                    case().sum().backward()
                times[group, name].append(time.process_time() - began)
    print(f"{options.size}^3, {options.threads} threads, CPU seconds forward and backward, median of {options.repeats}")
    print("| piece | by | CPU s | times learnreg |\n|---|---|---|---|")
    for group, cases in groups.items():
        own = None
        for name in cases:
            median = statistics.median(times[group, name][1:])
            own = median if own is None else own
            print(f"| {group} | {name} | {median:.4f} | {median / own:.1f} |")


def training(options: argparse.Namespace) -> None:
    """A training step of one pair at 64^3, images only; with ``--minutes``, the Dice after that time each."""
    torch.manual_seed(0)
    space = ModelSpace(1.0, (64, 64, 64))
    data = RegistrationData(options.data, space, train=(0, 148), validation=(148, 160))
    objective = Objective(LNCC(9), {"diffusion": Penalty(Diffusion(), 1.0)})
    contestants = {
        f"learnreg {type(network).__name__}": peers.Trainee(
            network, lambda f, m, network=network: objective(f, m, network(f, m)).total, network
        )
        for network in (UNet(channels=(32, 48, 64, 64)), Pyramid(channels=(16, 48, 64, 96)))
    } | peers.trainees()
    precision = fastest_precision("cpu")
    batches = iter(data.train_dataloader())
    optimizers = {name: torch.optim.Adam(t.module.parameters(), lr=1e-3) for name, t in contestants.items()}

    def step(name: str, batch: tuple[Image, Image]) -> None:
        ours = name.startswith("learnreg") and precision == "bf16-mixed"
        with torch.autocast("cpu", torch.bfloat16, enabled=ours):
            loss = contestants[name].loss(*batch)
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for batch in tqdm([next(batches) for _ in range(options.repeats + 1)], desc="steps"):
        for name in contestants:
            began = time.process_time()
            step(name, batch)
            seconds[name].append(time.process_time() - began)
    print(f"{options.threads} threads, convolutions of learnreg in {precision}")
    print("| network | weights | CPU s a step |" + (" steps | Dice |" if options.minutes else ""))
    print("|---|---|---|" + ("---|---|" if options.minutes else ""))
    for name, trainee in contestants.items():
        weights = sum(p.numel() for p in trainee.module.parameters())
        row = f"| {name} | {weights / 1e3:.0f} k | {statistics.median(seconds[name][1:]):.2f} |"
        if options.minutes:
            until, steps = time.monotonic() + 60 * options.minutes, 0
            while time.monotonic() < until:
                for batch in data.train_dataloader():
                    step(name, batch)
                    steps += 1
                    if time.monotonic() >= until:
                        break
            with torch.no_grad():
                found = [score(c.fixed, c.moving, trainee.answer(c.fixed, c.moving)).dice for c in data.cases()]
            row += f" {steps} | {torch.stack(found).mean():.3f} |"
        print(row, flush=True)


def blocks(options: argparse.Namespace) -> None:
    """A training step of one pair as it is, with gradient checkpointing, and compiled; each in its own process."""
    if options.change is None:
        print(f"one pair of {options.size}^3, {options.precision}, {options.threads} threads")
        print("| network | | seconds a step | peak MB | seconds of the first step |\n|---|---|---|---|---|", flush=True)
        for name in ("unet", "pyramid"):
            for change in ("none", "gradient_checkpointing", "compile"):
                given = ["--change", change, "--network", name]
                # freed memory goes back to the system at once, so that the peak is that of a step
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
                subprocess.run([sys.executable, *sys.argv, *given], check=True, env=environment)
        return
    torch.manual_seed(0)
    grid = Grid.regular((options.size,) * 3)
    fixed, moving = (Image(torch.rand(1, 1, *grid.shape), grid) for _ in range(2))
    network = UNet(channels=(32, 48, 64, 64)) if options.network == "unet" else Pyramid(channels=(16, 48, 64, 96))
    {"none": lambda _: None, "compile": compile_blocks, "gradient_checkpointing": recompute_blocks}[options.change](
        network
    )
    module = RegistrationModule(
        network, Objective(LNCC(7), {"diffusion": Penalty(Diffusion(), 1.0)}), partial(torch.optim.Adam, lr=1e-3)
    )
    optimizer, seconds = module.configure_optimizers()["optimizer"], []
    warnings.filterwarnings("ignore", message=".*self.log.*")

    def step() -> None:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            loss = module.training_step((fixed, moving), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)

    step()
    with peak_memory() as peak:
        for _ in range(options.repeats):
            step()
    cells = f"{statistics.median(seconds[1:]):.2f} | {(peak.bytes or 0) / 1e6:.0f} | {seconds[0]:.1f}"
    print(f"| {options.network} | {options.change} | {cells} |", flush=True)


def ranks(options: argparse.Namespace) -> None:
    """A training step by volume, batch and processes; every process has the same batch and one thread."""
    if options.batch is None:
        print("| volume | batch | processes | seconds a step | pairs a second | efficiency | peak MB a process |")
        print("|---|---|---|---|---|---|---|", flush=True)
        cases = [(size, 1, 1) for size in options.size]
        cases += [
            (options.size[0], batch, count) for batch in (1, 2, 4) for count in (1, 2) if (batch, count) != (1, 1)
        ]
        with tempfile.TemporaryDirectory() as folder:
            one: dict[tuple[int, int], float] = {}
            for size, batch, count in sorted(cases):
                given = ["--threads", "1", "ranks", "--size", str(size), "--batch", str(batch), "--output", folder]
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
                subprocess.run([*launch, __file__, *given], check=True, env=environment)
                seconds, peak = map(float, Path(folder, "step.txt").read_text().split())
                one.setdefault((size, batch), seconds)
                cells = f"{seconds:.2f} | {batch * count / seconds:.2f} | {one[size, batch] / seconds:.2f}"
                print(f"| {size}^3 | {batch} | {count} | {cells} | {peak / 1e6:.0f} |", flush=True)
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)  # Lightning's, of each process
    torch.manual_seed(0)
    grid = Grid.regular((options.size[0],) * 3)
    images = [Image(torch.rand(options.batch, 1, *grid.shape), grid) for _ in range(2)]
    objective = Objective(LNCC(7), {"diffusion": Penalty(Diffusion(), 1.0)})
    module = RegistrationModule(Pyramid(channels=(16, 48, 64, 96)), objective, partial(torch.optim.Adam, lr=1e-3))
    seconds: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            seconds.append(-time.perf_counter())

        def on_train_batch_end(self, *_: object) -> None:
            seconds[-1] += time.perf_counter()

    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=6,
        precision="32-true",
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with peak_memory() as peak:
        trainer.fit(module, DataLoader([tuple(images)] * 6, batch_size=None))
    if trainer.is_global_zero:
        Path(options.output, "step.txt").write_text(f"{statistics.median(seconds[1:])} {peak.bytes or 0}")


def data(options: argparse.Namespace) -> None:
    """Reading brains for a training: the first epoch and the ones after it, by number of workers, kept how."""
    subjects = read_subjects(options.data)[: options.count]
    space = ModelSpace(1.0, (144, 192, 160), content=True)
    pairs = [(fixed, moving) for fixed in subjects for moving in subjects if fixed is not moving]
    print(f"{len(subjects)} brains of 144x192x160 with labels, {len(pairs)} pairs an epoch; {options.threads} threads")
    print("| kept | workers | first epoch, s a pair | later epochs | next run, first epoch |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kept in ("nothing", "in memory", "in a folder"):
            for workers in (0, 1, 2):
                cache = Path(folder, f"{workers}") if kept.endswith("folder") else None
                seconds: list[float] = []
                for epochs in (3, 1):
                    store = ImageStore(space, cache, memory=0.0 if kept == "nothing" else 4.0)
                    loader = DataLoader(
                        PairDataset(pairs, store),
                        collate_fn=collate,
                        num_workers=workers,
                        persistent_workers=workers > 0,
                        multiprocessing_context="fork" if workers else None,
                    )
                    for _ in range(epochs):
                        began = time.perf_counter()
                        for fixed, moving in loader:
                            fixed.data.sum(), moving.data.sum()
                        seconds.append((time.perf_counter() - began) / len(pairs))
                print(
                    f"| {kept} | {workers} | {seconds[0]:.3f} | {min(seconds[1:3]):.3f} | {seconds[3]:.3f} |",
                    flush=True,
                )
    fixed, _ = next(iter(loader))
    sizes = fixed.data.nbytes, fixed.labels.nbytes if fixed.labels is not None else 0
    print(f"an image takes {sum(sizes) / 1e6:.0f} MB, kept {(sizes[0] + sizes[1] / 8) / 1e6:.0f} MB")


def flow(options: argparse.Namespace) -> None:
    """Error of scaling and squaring compared with the flow of a smooth velocity, and of the inverse."""
    n = options.size
    grid = Grid.regular((n, n, n))
    inner = (slice(None), *[slice(n // 5, -(n // 5))] * 3)
    print(f"{n}^3; mean error against a Runge-Kutta integration, and of exp(v) then exp(-v), in voxels")
    print("| amplitude, wavelength | by | error | inverse error | CPU s |\n|---|---|---|---|---|")
    for amplitude, wavelength in ((4.0, 32.0), (3.0, 16.0), (8.0, 28.0)):
        velocity = wave(grid.points, amplitude, wavelength).movedim(-1, 1).contiguous()
        truth = runge_kutta(grid.points[inner].double(), amplitude, wavelength)
        for name, integrate in peers.integrators(grid).items():
            there, back = integrate(velocity), integrate(-velocity)
            error = ((grid.points + there.movedim(1, -1))[inner] - truth).norm(dim=-1).mean()
            rest = compose(there, back, grid).movedim(1, -1)[inner].norm(dim=-1).mean()
            leaf, seconds = velocity.clone().requires_grad_(), []
            for _ in range(options.repeats):
                began = time.process_time()
                integrate(leaf).sum().backward()
                seconds.append(time.process_time() - began)
            row = f"{float(error):.4f} | {float(rest):.4f} | {statistics.median(seconds):.3f}"
            print(f"| {amplitude:g}, {wavelength:g} | {name} | {row} |")


def iterations(options: argparse.Namespace) -> None:
    """CPU time of one iteration of the classical solver, on AirLab's own problems; ``--airlab`` times it, too."""
    n, spacing, window = options.size, 8, 9
    grid = Grid.regular((n, n, n))
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (Image(torch.rand(1, 1, n, n, n, generator=generator), grid) for _ in range(2))
    airlab = peers.AirLab(options.airlab, fixed.data, moving.data) if options.airlab else None
    kinds: dict[str, Callable[[], Parametrization]] = {
        "dense": partial(DenseParametrization, grid, None, kind="displacement", coarsening=1),
        "B-spline": partial(BSplineParametrization, grid, None, spacing=spacing),
        "diffeomorphic dense": partial(DenseParametrization, grid, None, kind="velocity", coarsening=1, steps=3),
    }
    smooth = {"diffusion": Penalty(Diffusion(), 0.1)}

    def own(kind: str, similarity: Similarity) -> Callable[[], None]:
        parameters, objective = kinds[kind](), Objective(similarity, smooth)
        optimizer = torch.optim.Adam(parameters.parameters(), lr=0.1)

        def iterate() -> None:
            optimizer.zero_grad()
            objective(fixed, moving, parameters(fixed, moving)).total.backward()
            optimizer.step()

        iterate()  # the first warms up
        return iterate

    print(f"{n}^3, {options.threads} threads, CPU seconds an iteration, median of {options.repeats}")
    print("| | learnreg | AirLab | times learnreg |\n|---|---|---|---|" if airlab else "| | learnreg |\n|---|---|")
    similarities: dict[str, Similarity] = {"MSE": MSE(), "LCC": LNCC(window)}
    for kind, name in [*product(("dense", "B-spline"), similarities), ("diffeomorphic dense", "MSE")]:
        solvers = [own(kind, similarities[name])]
        if airlab:
            solvers.append(airlab.iteration(kind, name, spacing=spacing, window=window))
        seconds: list[list[float]] = [[] for _ in solvers]
        for _ in range(options.repeats):
            for solver, times in zip(solvers, seconds, strict=True):
                began = time.process_time()
                solver()
                times.append(time.process_time() - began)
        first, *others = (statistics.median(times) for times in seconds)
        columns = [f"{first:.3f}", *(f"{other:.3f} | {other / first:.1f}" for other in others)]
        print(f"| {kind} / {name} | {' | '.join(columns)} |", flush=True)


def shares(options: argparse.Namespace) -> None:
    """What share of a registration each kernel takes; what is left is PyTorch and Python."""
    first, second = read_subjects(options.data)[:2]
    case = between(first, second)
    fixed, moving = (Image(image.data, image.grid, image.mask) for image in (case.fixed, case.moving))
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    call = compiled.Compiled.__call__

    def timed(kernel: compiled.Compiled, *arguments: object) -> object:
        began = time.thread_time()
        try:
            return call(kernel, *arguments)
        finally:
            name = f"{kernel.loop.__module__.rpartition('.')[2]}: {kernel.loop.__name__.removesuffix('_loop')}"
            seconds[name] = seconds.get(name, 0.0) + time.thread_time() - began
            calls[name] = calls.get(name, 0) + 1

    for name in options.method or ["brain"]:
        method = load_method(name)
        method(fixed, moving)  # the first call compiles
        seconds.clear()
        calls.clear()
        began = time.process_time()
        with patch.object(compiled.Compiled, "__call__", timed):
            method(fixed, moving)
        total = time.process_time() - began
        print(
            f"\n{name}, {case.name}: {total:.2f} CPU s on {options.threads} threads, {megabytes(fixed):.0f} MB an image"
        )
        print("| kernel | calls | CPU s | share % |\n|---|---|---|---|")
        for key in sorted(seconds, key=lambda key: -seconds[key]):
            if seconds[key] > 0.005 * total:
                print(f"| {key} | {calls[key]} | {seconds[key]:.2f} | {100 * seconds[key] / total:.1f} |")
        rest = total - sum(seconds.values())
        print(f"| PyTorch and Python | | {rest:.2f} | {100 * rest / total:.1f} |", flush=True)


def wave(points: torch.Tensor, amplitude: float, wavelength: float) -> torch.Tensor:
    """A smooth velocity in closed form."""
    x, y, z = (2 * math.pi / wavelength * points).unbind(-1)
    parts = [(y + 0.3).sin() * z.cos(), (z + 1).sin() * (0.7 * x).cos(), x.sin() * (y + 0.5).cos()]
    return amplitude * torch.stack(parts, dim=-1)


def runge_kutta(points: torch.Tensor, amplitude: float, wavelength: float, steps: int = 200) -> torch.Tensor:
    """Where the flow of :func:`wave` takes points in unit time."""
    h = 1 / steps
    for _ in range(steps):
        a = wave(points, amplitude, wavelength)
        b = wave(points + h / 2 * a, amplitude, wavelength)
        c = wave(points + h / 2 * b, amplitude, wavelength)
        d = wave(points + h * c, amplitude, wavelength)
        points = points + h / 6 * (a + 2 * b + 2 * c + d)
    return points


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    small = commands.add_parser("pieces")
    small.add_argument("--size", type=int, default=64)
    small.add_argument("--repeats", type=int, default=9)
    small.set_defaults(run=pieces)
    solver = commands.add_parser("iterations")
    solver.add_argument("--size", type=int, default=128)
    solver.add_argument("--repeats", type=int, default=3)
    solver.add_argument("--airlab", type=Path, help="a source checkout of AirLab, timed in the same run")
    solver.set_defaults(run=iterations)
    parts = commands.add_parser("shares")
    parts.add_argument("data", help="the folder brain or hippocampus of LEARNREG_DATA")
    parts.add_argument("--method", action="append", default=[])
    parts.set_defaults(run=shares)
    accuracy = commands.add_parser("flow")
    accuracy.add_argument("--size", type=int, default=64)
    accuracy.add_argument("--repeats", type=int, default=5)
    accuracy.set_defaults(run=flow)
    step = commands.add_parser("training")
    step.add_argument("data", help="the folder hippocampus of LEARNREG_DATA")
    step.add_argument("--repeats", type=int, default=5)
    step.add_argument("--minutes", type=float, default=0, help="then train each for so long, and score it")
    step.set_defaults(run=training)
    ways = commands.add_parser("blocks")
    ways.add_argument("--size", type=int, default=64)
    ways.add_argument("--repeats", type=int, default=5)
    ways.add_argument("--precision", default=fastest_precision("cpu"), choices=["32-true", "bf16-mixed"])
    ways.add_argument("--change", help=argparse.SUPPRESS)
    ways.add_argument("--network", help=argparse.SUPPRESS)
    ways.set_defaults(run=blocks)
    several = commands.add_parser("ranks")
    several.add_argument("--size", type=int, nargs="+", default=[48, 64, 96, 128])
    several.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    several.add_argument("--output", help=argparse.SUPPRESS)
    several.set_defaults(run=ranks)
    reading = commands.add_parser("data")
    reading.add_argument("data", help="the folder brain of LEARNREG_DATA")
    reading.add_argument("--count", type=int, default=4, help="brains")
    reading.set_defaults(run=data)
    real = commands.add_parser("hippocampus")
    real.add_argument("data", help="the folder hippocampus of LEARNREG_DATA")
    real.add_argument("--method", action="append", default=[])
    real.add_argument("--checkpoint")
    real.add_argument("--refine", type=int, default=30)
    real.add_argument("--first", type=int, default=160)
    real.add_argument("--last", type=int, default=200)
    real.set_defaults(run=hippocampus)
    whole = commands.add_parser("brain")
    whole.add_argument("data", help="the folder brain of LEARNREG_DATA")
    whole.add_argument("--method", action="append", default=[])
    whole.add_argument("--subject", nargs="+", default=["1019", "1104", "1122"])
    whole.add_argument("--slow", action="store_true", help="also ANTs with cross-correlation: many minutes a pair")
    whole.add_argument("--alone", action="store_true", help="learnreg's methods only")
    whole.set_defaults(run=brain)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
