"""``learnreg doctor``: what this installation and machine can do. It runs where a package is missing or broken, too."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from learnreg import __version__

NEEDED = {  # name in the report: the module, and the distribution
    "torch": ("torch", "torch"),
    "MONAI": ("monai", "monai"),
    "SimpleITK": ("SimpleITK", "SimpleITK"),
    "Lightning": ("pytorch_lightning", "pytorch-lightning"),
    "nibabel": ("nibabel", "nibabel"),
    "numpy": ("numpy", "numpy"),
    "scipy": ("scipy", "scipy"),
    "Hydra": ("hydra", "hydra-core"),
    "matplotlib": ("matplotlib", "matplotlib"),
}
OPTIONAL = {  # the distribution: the module, and what it is for
    "nilearn": ("nilearn", "experiment=quickstart"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "wandb": ("wandb", "logger=wandb"),
    "submitit": ("submitit", "batch --on slurm"),
    "ray": ("ray", "batch --on ray"),
    "hydra-joblib-launcher": ("hydra_plugins.hydra_joblib_launcher", "sweeps on several cores"),
    "hydra-optuna-sweeper": ("hydra_plugins.hydra_optuna_sweeper", "sweeps that search"),
    "pyarrow": ("pyarrow", "batch: results.parquet"),
}
INSTRUCTIONS = {  # of torch.cpu.get_capabilities()
    "AVX2": ("avx2",),
    "AVX-512": ("avx512_f", "avx512"),
    "AVX-512 bfloat16": ("avx512_bf16",),
    "AMX": ("amx_tile", "amx_bf16"),
    "NEON": ("neon",),
    "SVE": ("sve",),
}
SHIFT = (3.0, -2.0, 1.5)  # mm, what the self-test has to find
ACCURACY = 0.3  # mm


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Args:
        name: What was looked at.
        found: What was found.
        fine: Whether learnreg works with it.
    """

    name: str
    found: str
    fine: bool = True


Lines: TypeAlias = Iterator[Line]


def run() -> None:
    """Print the report; exit with status 1 if something essential fails."""
    wrong = 0
    parts: dict[str, Callable[[], Lines]] = {
        "Installation": installation,
        "Machine": machine,
        "Optional packages": optional,
        "Models": models,
        "Self-test": self_tests,
    }
    for heading, part in parts.items():
        print(heading)
        for line in _guarded(part):
            wrong += not line.fine
            print(f"  {'' if line.fine else 'FAILED: '}{line.name:21} {line.found}", flush=True)
    print(f"{wrong} problem(s)" if wrong else "Everything works.")
    if wrong:
        raise SystemExit(1)


def _guarded(part: Callable[[], Lines]) -> Lines:
    """Yield the lines of a part; an error of any kind is a line, because a report about it is what is wanted."""
    try:
        yield from part()
    except Exception as error:
        yield Line(part.__name__.replace("_", " "), _reason(error), fine=False)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def installation() -> Lines:
    """Yield the versions of learnreg and of the packages that it needs."""
    yield Line("learnreg", f"{__version__}, in {Path(__file__).resolve().parents[1]}")
    yield Line("Python", f"{platform.python_version()}, {sys.executable}")
    for name, (module, distribution) in NEEDED.items():
        try:
            import_module(module)
            yield Line(name, metadata.version(distribution))
        except Exception as error:  # a broken library can raise anything
            yield Line(name, f"{_reason(error)}; pip install {distribution}", fine=False)


def machine() -> Lines:
    """Yield processor, memory and accelerators."""
    import torch

    from learnreg.memory import free_memory

    yield Line("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield Line("CPU", f"{_processor()}, {os.cpu_count()} cores, {usable} usable; torch takes {torch.get_num_threads()}")
    able = {key for key, value in getattr(torch.cpu, "get_capabilities", dict)().items() if value}
    known = [name for name, keys in INSTRUCTIONS.items() if able & set(keys)]
    compiled = torch.backends.cpu.get_cpu_capability()
    yield Line("instructions", f"{', '.join(known) or 'unknown'}; torch uses {compiled}")
    free = free_memory()
    yield Line("memory", "unknown" if free is None else f"{free / 1e9:.1f} GB free of {_total_memory() / 1e9:.1f} GB")
    yield Line("CUDA", _cuda())
    yield Line("MPS", "available" if torch.backends.mps.is_available() else "none")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _total_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none" if torch.version.cuda is None else f"none in sight; torch is built for {torch.version.cuda}"
    devices = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}: " + ", ".join(f"{d.name} ({d.total_memory / 1e9:.0f} GB)" for d in devices)


def optional() -> Lines:
    """Yield packages that some options need."""
    for distribution, (module, purpose) in OPTIONAL.items():
        try:
            there = find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        found = metadata.version(distribution) if there else f"not installed: pip install {distribution}"
        yield Line(distribution, f"{found} ({purpose})")


def models() -> Lines:
    """Yield the presets and the trained models, which are read: those of learnreg, and those of ``LEARNREG_MODELS``."""
    from learnreg.configs.files import method_names
    from learnreg.configs.models import VARIABLE, cache, given, models_url, own_files, package_files

    yield Line("presets", ", ".join(method_names()))
    ours, own = package_files(), own_files()
    for name, file in ours.items():
        yield _model(name, file)
    url = models_url()
    if url is not None:
        yield Line(VARIABLE, f"{url}, {len(own)} of its models in {cache(url)}")
    elif given():
        there = Path(given()).expanduser().is_dir()
        yield Line(VARIABLE, f"{given()}, {len(own)} models" if there else f"{given()} is not a folder", fine=there)
    for name, file in own.items():
        hidden = f"{file} is not used, because learnreg comes with a model of this name; rename it"
        yield Line(name, hidden, fine=False) if name in ours else _model(name, file)


def _model(name: str, file: Path) -> Line:
    from learnreg.errors import InputError, UntrustedClassError
    from learnreg.networks.checkpoint import load_checkpoint

    try:
        network = load_checkpoint(file).network
    except UntrustedClassError as error:  # a user's own network
        return Line(name, f"{file}, of the package {error.package}")
    except InputError as error:
        return Line(name, str(error), fine=False)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return Line(name, f"{type(network).__name__}, {weights / 1e6:.2f} M weights, {file}")


def self_tests() -> Lines:
    """Register two small images on the CPU, and on the fastest device if that is another one."""
    from learnreg.apps.register import fastest_device

    for device in dict.fromkeys(("cpu", fastest_device())):
        try:
            error, seconds = self_test(device)
        except Exception as failed:  # of a driver, for example
            yield Line(device, _reason(failed), fine=False)
            continue
        text = f"a shift of {sum(s * s for s in SHIFT) ** 0.5:.1f} mm was found to {error:.3f} mm in {seconds:.1f} s"
        yield Line(device, text, fine=error < ACCURACY)


def self_test(device: str) -> tuple[float, float]:
    """Register two synthetic images, and compare the written transform, as SimpleITK reads it, with the truth.

    Returns:
        The largest error in mm, and the time in s.
    """
    import SimpleITK as sitk
    import torch

    from learnreg.grid import Grid
    from learnreg.image import Image
    from learnreg.methods import register

    def blobs(points: torch.Tensor) -> torch.Tensor:
        parts = (((0, 0, 0), 9.0, 1.0), ((10, 4, -3), 5.0, 0.8), ((-7, 9, 6), 4.0, 0.6), ((2, -10, 8), 5.0, 0.7))
        squares = [(((points - points.new_tensor(center)) / width) ** 2).sum(-1) for center, width, _ in parts]
        heights = [height for _, _, height in parts]
        return torch.stack([h * torch.exp(-r / 2) for h, r in zip(heights, squares, strict=True)], 1).sum(1, True)

    grid = Grid.regular((24, 26, 28), 2.0)
    fixed = Image(blobs(grid.points), grid)
    moving = Image(blobs(grid.points - torch.tensor(SHIFT)), grid)
    began = time.perf_counter()
    result = register(fixed, moving, "rigid", device=device, progress=False)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        result.save_transform(Path(folder) / "transform.h5")
        written = sitk.ReadTransform(str(Path(folder) / "transform.h5"))
    corners = [(x, y, z) for x in (-10.0, 10.0) for y in (-10.0, 10.0) for z in (-10.0, 10.0)]
    errors = [
        max(abs(to - at - by) for to, at, by in zip(written.TransformPoint(point), point, SHIFT, strict=True))
        for point in corners
    ]
    return max(errors), seconds
