"""Measure the memory of a computation, and refuse what does not fit."""

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
    """Peak memory of a computation.

    Args:
        bytes: Bytes above the memory in use at the start; ``None`` if unknown.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the peak memory of the code in the ``with`` block.

    On the CPU it is the resident memory of the process (Linux only). On a GPU it is the memory that torch allocates.

    Args:
        device: Where the code computes.

    Returns:
        A :class:`Peak`, filled in when the block ends.
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system first
    start = _resident("VmRSS") if _forget_peak() else None
    yield peak
    end = _resident("VmHWM")
    if start is not None and end is not None:
        peak.bytes = max(0, end - start)


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the available bytes on a device; ``None`` if unknown."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _field("/proc/meminfo", "MemAvailable")


def check_fits(needed: float, device: torch.device | str, what: str, remedy: str) -> None:
    """Raise an error if a computation does not fit into the available memory.

    Args:
        needed: Bytes that the computation needs.
        device: Where it runs.
        what: Start of the message, such as ``"A FieldStage on 512x512x512 voxels"``.
        remedy: End of the message.

    Raises:
        InputError: More bytes are needed than available.
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
    """Read a line ``name: 123 kB`` of a file, in bytes."""
    try:
        lines = Path(file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None
