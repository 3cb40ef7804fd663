"""Memory: what a computation takes at its peak, and what is free."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from learnreg.errors import InputError


@dataclass
class Peak:
    """Bytes above what was held at the start; ``None`` where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the highest point of what runs within; the bytes are there when it has ended.

    On the CPU it is the resident memory of the process, from Linux; on a GPU what torch allocates there.
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what is free already is not held
    start = _resident("VmRSS") if _forget_peak() else None
    yield peak
    end = _resident("VmHWM")
    if start is not None and end is not None:
        peak.bytes = max(0, end - start)


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can be had; ``None`` where the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _field("/proc/meminfo", "MemAvailable")


def check_fits(needed: float, device: torch.device | str, what: str, remedy: str) -> None:
    """Refuse what would not fit, before it is begun.

    Args:
        needed: Bytes.
        device: Where.
        what: Begins the message.
        remedy: Ends it.

    Raises:
        ValueError: More is needed than is free.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise InputError(f"{what} takes about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. {remedy}")


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int | None:
    return _field("/proc/self/status", name)


def _field(file: str, name: str) -> int | None:
    """A line ``name: 123 kB`` in bytes."""
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None
