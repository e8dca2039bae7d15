"""Times taken in turns, and the memory of one call."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

SAMPLES = 80  # that the time has room for: a sample is of as many calls as fill a part of it
ROUNDS = (3, 41)  # a median of two would be a mean


class Time(NamedTuple):
    """Seconds of one call: the median over the rounds, and half the distance between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, samples: list[float]) -> Time:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(statistics.median(samples), (high - low) / 2)


def once(run: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Seconds of one call, the mean of `repeats` in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def in_turns(runs: dict[str, Callable[[], object]], device: str, seconds: float) -> dict[str, Time]:
    """Every run once in each round, so that a slow moment of the machine meets all of them alike.

    There are as many rounds as fit into `seconds`, at least 3; the first calls, which compile, are not counted. What
    is short is called several times in a row, as threads of the one before still spin for some milliseconds.
    """
    repeats = {}
    for name, run in runs.items():
        first = once(run, device)
        repeats[name] = 1 if first > 1 else max(1, math.ceil(seconds / SAMPLES / once(run, device)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for count in range(1, ROUNDS[1] + 1):
        for name, run in runs.items():
            samples[name].append(once(run, device, repeats[name]))
        if count >= ROUNDS[0] and (time.perf_counter() - started) * (count + 1) / count > seconds:
            break
    return {name: Time.of(found) for name, found in samples.items()}


def memory(run: Callable[[], object], device: str) -> int | None:
    """Bytes of the peak during one call above what was held before, its results included; None where unknown."""
    _wait(device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        _wait(device)
        del kept
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # pages that the allocator kept would hide new ones
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        kept = run()
        del kept
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
