"""Running a function in several processes that train together."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: No test here takes longer; a hang is a failure, not a wait.
SECONDS = 120


class RanksFailedError(AssertionError):
    """What went wrong, by rank."""


def run(function: Callable[..., Any], world: int, folder: Path, *args: Any, alive: set[int] | None = None) -> list[Any]:
    """What ``function(rank, world, *args)`` returns on each rank; None where it was meant to die.

    Args:
        function: of a module, so that it can be sent.
        world: number of processes.
        folder: an empty one.
        alive: ranks that must come back; all by default.
    """
    context = mp.get_context("spawn")
    port = _free_port()
    processes = [
        context.Process(target=_work, args=(function, rank, world, port, str(folder), args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    hung = []
    for rank, process in enumerate(processes):
        process.join(SECONDS)
        if process.is_alive():
            hung.append(rank)
    for process in processes:
        process.kill()
    if hung:
        raise RanksFailedError(f"ranks {hung} hung for {SECONDS} s")
    found: list[Any] = []
    for rank in range(world):
        path = folder / f"rank{rank}"
        result = pickle.loads(path.read_bytes()) if path.exists() else ("died", None)
        if result[0] != "ok" and (alive is None or rank in alive):
            raise RanksFailedError(f"rank {rank} {result[0]}:\n{result[1]}")
        found.append(result[1])
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _work(function: Callable[..., Any], rank: int, world: int, port: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS - 20))
    torch.manual_seed(0)
    try:
        result: tuple[str, Any] = ("ok", function(rank, world, *args))
    except Exception:
        result = ("failed", traceback.format_exc())
    Path(folder, f"rank{rank}").write_bytes(pickle.dumps(result))
    sys.stdout.flush()
    # Without waiting for each other: a rank that failed would keep the rest.
    os._exit(0)
