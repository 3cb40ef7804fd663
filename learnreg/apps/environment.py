"""Settings of the process that a command runs in."""

from __future__ import annotations

import os


def let_threads_sleep() -> None:
    """Let waiting OpenMP threads sleep instead of spin, unless the user has chosen.

    On a machine that runs anything else, a spinning pool makes a registration tens of times slower. Call it before
    torch is imported. A library must not set this for the process that imports it, so only commands do.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
