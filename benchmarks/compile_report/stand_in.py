"""A stand-in for the driver of a GPU: launches compile what they would run, and run nothing.

So a report sees the argument types and the specialisations of real launches, which depend on shapes and strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from diffattn.kernels.backends.triton import backward, dkv, forward
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Launched(NamedTuple):
    """A launch that compiled: the name of the kernel, what it compiled to, and whether it was not in the cache yet."""

    kernel: str
    compiled: Any
    new: bool


class _Driver:
    def __init__(self, arch: str) -> None:
        self.number = int(arch.removeprefix("sm_").removeprefix("gfx"))
        self.target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        return self.number  # Triton keeps its kernels by device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@contextmanager
def compiling_for(arch: str) -> Iterator[list[Launched]]:
    """Lets launches on tensors of the CPU compile for `arch`; yields the list of what they compiled."""
    launched: list[Launched] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels = self.device_caches[driver.active.get_current_device()][0]
        before = len(kernels)
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launched.append(Launched(self.fn.__name__, compiled, len(kernels) > before))
        return compiled

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(driver, "_active", _Driver(arch)))
        patches.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        for module in (forward, backward, dkv):
            patches.enter_context(mock.patch.object(module, "architecture", lambda device: arch))
        yield launched
