"""Attention beside dense backends, and what planning costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch.utils._python_dispatch import TorchDispatchMode

import diffattn
from diffattn import attend
from diffattn.analysis.synthetic import structured_qkv

from ..attention.candidates import Candidate, dense, ours
from ..attention.case import Case
from ..timing import once
from .sizes import Sizes

METHODS = ("auto", "pyramid", "rectified", "vmoba", "sol")
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::unique_dim", "aten::masked_select", "aten::equal"}


def speeds(sizes: Sizes) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every dense backend and every density at every shape."""
    for tokens in sizes.lengths:
        for heads in sizes.heads:
            case = Case(sizes.device, sizes.dtype, tokens, sizes.dims[-1], heads=heads)
            shape = f"{tokens} tokens, {heads} heads"
            for candidate in dense(case):
                yield f"{candidate.name}, {shape}", partial(_time, sizes, case, candidate, 1.0)
            for density in sizes.densities:
                candidate = partial(ours, case, case.blocks(density), sizes.impl, lse=False)
                yield f"diffattn at {density}, {shape}", partial(_time_ours, sizes, case, candidate)


def _time_ours(sizes: Sizes, case: Case, make: Callable[[], Candidate]) -> dict:
    candidate = make()
    return _time(sizes, case, candidate, float(candidate.blocks.float().mean()))


def _time(sizes: Sizes, case: Case, candidate: Candidate, density: float) -> dict:
    seconds = _seconds(sizes, lambda: candidate.run(*case.inputs))
    return {"ms": seconds * 1e3, "density": density, "TFLOP/s": case.products * density / seconds / 1e12}


def method_times(sizes: Sizes) -> Iterator[tuple[str, Callable[[], dict]]]:
    """What a plan and a call with it cost, for every dynamic method."""
    for method in METHODS:
        yield method, partial(_method, sizes, method)


def _method(sizes: Sizes, method: str) -> dict:
    query, key, value = structured_qkv(sizes.grid, heads=sizes.heads[-1], dim=sizes.dims[-1])
    query, key, value = (part.to(sizes.device, sizes.dtype) for part in (query, key, value))
    config = diffattn.config(method)
    plan = partial(config.plan, sizes.grid, query, key, layer=2)
    made = plan()
    with Operations() as operations:
        plan()
    attending = _seconds(sizes, lambda: attend(query, key, value, made, impl=sizes.impl))
    planning = _seconds(sizes, plan)
    return {"plan ms": planning * 1e3, "attend ms": attending * 1e3, **operations.counts}


def _seconds(sizes: Sizes, run: Callable[[], object]) -> float:
    once(run, sizes.device)  # compiles
    repeats = max(1, min(100, int(sizes.seconds / max(once(run, sizes.device), 1e-6))))
    return once(run, sizes.device, repeats)


class Operations(TorchDispatchMode):
    """Counts the operations of torch that launch something, and those that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"launches": 0, "host reads": 0}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        reads = operation._schema.name in READS
        views = any(
            argument.alias_info and not argument.alias_info.is_write for argument in operation._schema.arguments
        )
        self.counts["host reads" if reads else "launches"] += not views
        return found
