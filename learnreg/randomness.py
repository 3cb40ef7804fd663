"""Random numbers as a function of a key, such as the seed of a run and the number of a step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*key: object) -> int:
    """Return a seed of 32 bits for a key, such as the seed of a run and the index of a pair.

    Example:
        >>> derived_seed("augmentation", 0, 1) == derived_seed("augmentation", 0, 1)
        True
        >>> derived_seed("augmentation", 0, 1) == derived_seed("augmentation", 0, 2)
        False
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little")


def seed_generators(*key: object) -> None:
    """Seed the global generators of torch, NumPy and Python by a key."""
    seed = derived_seed(*key)
    torch.manual_seed(seed)
    np.random.seed(seed)  # MONAI and torchvision draw from the global generators
    random.seed(seed)


def standard_normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw standard normal values of the shape of a tensor, on its device.

    On another device than that of the generator they come from a generator there, which takes its seed from this one:
    a volume is not drawn on the CPU to be copied to a GPU.

    Example:
        >>> standard_normal(torch.empty(2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    if like.device.type == generator.device.type:
        return torch.randn(like.shape, generator=generator, device=like.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    there = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=there, device=like.device)


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seed the global generators on the CPU by a key; restore them at the end.

    Example:
        >>> with seeded("example", 1):
        ...     first = torch.rand(())
        >>> with seeded("example", 1):
        ...     bool(torch.rand(()) == first)
        True
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        seed_generators(*key)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
