"""Several threads that each run whole chains of operations, instead of all threads in every operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, current_thread

import torch

MAX_WORKERS = 8  # threads that share the interpreter without waiting for it
NAME = "diffattn"


def share_of_threads(device: torch.device) -> tuple[int, int]:
    """The number of workers for `in_threads` on `device`, 1 within a worker, and the torch threads of each worker."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    workers = 1 if current_thread().name.startswith(NAME) else min(threads, MAX_WORKERS)
    return workers, threads // workers


def in_threads(run: Callable[[int], None], workers: int, each: int, spread: bool) -> None:
    """`run(0)`, ..., `run(workers - 1)` at once, without gradients, each with `each` threads for its operations.

    If all threads share every operation, each of many small operations waits for the slowest thread, and for long if
    another program interrupts that thread. Without `spread` the runs follow each other on all threads, which suits
    small work.
    """
    inference = torch.is_inference_mode_enabled()  # local to a thread, like the gradient mode

    def without_gradients(index: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            run(index)

    each_of = _pool(os.getpid(), workers, each).map if spread and workers > 1 else map
    list(each_of(without_gradients, range(workers)))


@cache
def _pool(process: int, workers: int, each: int) -> ThreadPoolExecutor:
    """Worker threads of this process (a fork has none of them), each with `each` torch threads."""
    before, ready = torch.get_num_threads(), Barrier(workers)
    pool = ThreadPoolExecutor(workers, NAME)

    def start(_: int) -> None:
        torch.get_num_threads()  # a thread that never asked would adopt the common number later
        torch.set_num_threads(each)
        ready.wait()  # so that every thread runs `start` once

    list(pool.map(start, range(workers)))
    torch.set_num_threads(before)  # of this thread and of later ones
    return pool
