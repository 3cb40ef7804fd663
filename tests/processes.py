"""Run functions in processes of their own, as the ranks of a training do.

They are forked from a server that has imported the tests but computed nothing. A fork of the process that runs the
tests has the locks of threads that it does not have, and waits for them now and then.
"""

import multiprocessing
import os
import pickle
import socket
from multiprocessing.process import BaseProcess

import cloudpickle
import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.test_scale", "tests.apps.test_kills"])
LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK", "GROUP_RANK")


def begun(action, *, processes: int = 1) -> list[BaseProcess]:
    """Start a function without arguments in one process, or in all ranks of a training on one node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    packed = cloudpickle.dumps(action)  # bytes: the pickles of multiprocessing share the memory of tensors
    ranks = [CONTEXT.Process(target=_run, args=(packed, rank, processes, port)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    return ranks


def _run(packed: bytes, rank: int, processes: int, port: int) -> None:
    torch.set_num_threads(1)
    for name in LAUNCH:
        os.environ.pop(name, None)
    if processes > 1:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in here.items()})
    pickle.loads(packed)()


def statuses(ranks: list[BaseProcess]) -> list[int]:
    """Wait for processes; return their exit statuses, minus the signal for one that was killed.

    A rank that fails ends the others, which would wait for it.
    """
    while running := [rank for rank in ranks if rank.is_alive()]:
        running[0].join(0.1)
        if any(rank.exitcode not in (None, 0, 143) for rank in ranks):
            for rank in ranks:
                rank.join(5)
                rank.kill()
    return [rank.exitcode for rank in ranks]


def run(action, *, processes: int = 1) -> None:
    """Run a function in one process or in all ranks, and fail if one of them fails."""
    assert statuses(begun(action, processes=processes)) == [0] * processes
