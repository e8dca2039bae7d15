"""Does the demo leave memory behind? Many runs in one process, and after each what is still there.

    python -m benchmarks.memory --runs 40

`resident` is the process after a collection and after malloc gave back what it could; `tensors` and `megabytes` are
the tensors alive then and what they hold, `objects` everything that the garbage collector follows. A leak shows in one
of the last three. What only `resident` keeps belongs to the allocator and to caches of libraries, and must level off.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields

import torch
from torch._subclasses.fake_tensor import is_fake

from diffattn.demo import Request, Worker
from diffattn.demo.sessions import Sessions

METHODS = ("auto", "radial", "pyramid", "vmoba", "rectified", "sol", "neighborhood")
SMALL = Request("a red circle", density=0.3, dense_start=0, steps=2, width=64, height=64, frames=5)


@dataclass(frozen=True)
class Left:
    """What is there after a run: MiB of the process, tensors, their MiB, and objects of Python."""

    resident: float
    tensors: int
    megabytes: float
    objects: int


def left() -> Left:
    """Collect garbage, then count."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without it gives memory back by itself
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    everything = gc.get_objects()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules of torch warn when they are looked at
        # of plain memory: fake tensors and the like, which compilers keep, have none
        tensors = [thing for thing in everything if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [tensor for tensor in tensors if tensor.device.type != "meta" and not is_fake(tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return Left(resident(), len(tensors), sum(storages.values()) / 2**20, len(everything))


def resident() -> float:
    """MiB of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run and print a line for each run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="in turns")
    options = parser.parse_args()
    worker, sessions = Worker(device="cpu"), Sessions()
    print("run,method," + ",".join(field.name for field in fields(Left)))
    for run, method in zip(range(1, options.runs + 1), itertools.cycle(options.methods)):
        asked = worker.check(Request(**{**vars(SMALL), "method": method, "seed": run}))
        for _ in worker.run(asked, sessions.begin("me")):
            pass
        found = left()
        print(f"{run},{method},{found.resident:.0f},{found.tensors},{found.megabytes:.2f},{found.objects}", flush=True)
    sessions.close("me")


if __name__ == "__main__":
    sys.exit(main())
