"""Owns the gloo ranks: forked from one process that has paid for the imports, so that four cost as much as one."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import torch.distributed as dist


def run_ranks(ranks: int, function: Callable[[int], None]) -> None:
    """Call `function(rank)` in each of `ranks` processes, in a gloo process group.

    The caller must have started no thread yet: OMP_NUM_THREADS=1 before torch is imported.

    Raises:
        RuntimeError: a rank failed; the others have been ended.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder) / "store"
        processes = [context.Process(target=_rank, args=(rank, ranks, rendezvous, function)) for rank in range(ranks)]
        for process in processes:
            process.start()
        running = list(processes)
        try:
            while running:
                ready = wait([process.sentinel for process in running])
                for process in [process for process in running if process.sentinel in ready]:
                    running.remove(process)
                    process.join()
                    if process.exitcode != 0:
                        raise RuntimeError(f"{process.name} ended with {process.exitcode}")
        finally:
            for process in running:
                process.terminate()
                process.join()


def _rank(rank: int, ranks: int, rendezvous: Path, function: Callable[[int], None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    try:
        function(rank)
        dist.barrier()
    finally:
        dist.destroy_process_group()
