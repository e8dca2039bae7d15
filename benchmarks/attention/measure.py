"""The gate and the clock of `benchmarks.attention`: a candidate that is wrong is not timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from diffattn.kernels.backends.dense import break_even

from ..timing import in_turns, memory
from . import candidates
from .candidates import Candidate
from .case import Case, error_and_budget, sampled_attention

DENSE = "-"  # the tiles of what has none
KEPT = 1024  # keys of a query in the section on long rows
LINE = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


@dataclass
class Row:
    """One line of a table; times in seconds, memory in bytes. `wrong` says why there is no time."""

    section: str
    name: str
    device: str
    dtype: str
    batch: int
    heads: int
    tokens: int
    dim: int
    tiles: str
    density: float
    time: float | None = None
    spread: float | None = None
    speedup: float | None = None  # over the best dense candidate of the same round
    ideal: float | None = None  # speedup * density
    tflops: float | None = None  # of the products computed
    memory: int | None = None
    wrong: str = ""

    @property
    def where(self) -> str:
        return f"{self.dtype} S={self.tokens} D={self.dim} density={self.density:.3f} {self.name}"

    def to_dict(self) -> dict:
        """JSON-ready values."""
        return asdict(self)


def measure(cases: list[Case], densities: tuple[float, ...], section: str, seconds: float) -> list[Row]:
    """All candidates on one shape, timed in the same rounds; `section` is forward, backward or auto.

    The cases differ in their tiles only. Dense attention and the peers are of the first of them.
    """
    rows, runs, case = [], {}, cases[0]
    for case, candidate in _candidates(cases, densities, section):
        rows.append(row := _row(case, section, candidate))
        row.wrong = check(case, candidate, section == "backward")
        if row.wrong and candidate.name == "diffattn":
            return [row]
        if not row.wrong:
            runs[len(rows) - 1] = _runner(case, candidate, section)
    times = in_turns(runs, case.device, seconds)
    best = min(times[number].median for number in runs if rows[number].tiles == DENSE)
    for number, time in times.items():
        row = rows[number]
        row.time, row.spread = time
        row.speedup = best / time.median
        row.ideal = row.speedup * row.density
        row.tflops = case.products * (2.5 if section == "backward" else 1) * row.density / time.median / 1e12
        row.memory = memory(runs[number], case.device)
    return rows


def in_density(case: Case, seconds: float) -> list[Row]:
    """Our time at several densities of one shape, without anything to compare it with."""
    plans = [candidates.ours(case, case.blocks(density)) for density in LINE]
    return _alone([(case, candidate) for candidate in plans], "time against density", seconds)


def fixed_keys(cases: list[Case], seconds: float) -> list[Row]:
    """Our time at several lengths, every query keeping the same number of keys."""
    found = [(case, candidates.ours(case, case.blocks(min(1.0, KEPT / case.tokens)))) for case in cases]
    return _alone(found, "time against length", seconds)


def check(case: Case, candidate: Candidate, backward: bool) -> str:
    """Why the candidate cannot be timed: what it raises, or errors over the budget; empty if nothing."""
    with torch.enable_grad() if backward else nullcontext():
        seen = case.seen(candidate.blocks, candidate.masked)
        wide = torch.float32 if case.dtype != torch.float64 else case.dtype
        exact = sampled_attention(case, seen, torch.float64, backward)
        plain = sampled_attention(case, seen, wide, backward)
        try:
            got = _sampled(case, candidate, backward)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}" if str(error) else repr(error)
    names = ("grad query", "grad key", "grad value") if backward else ("out", "lse")
    for name, found, near, right in zip(names, got, plain, exact):
        error, budget = error_and_budget(found, near.to(found.dtype), right)
        if not error <= budget:
            return f"{name} is wrong by {error:.1e}, allowed {budget:.1e}"
    return ""


def _sampled(case: Case, candidate: Candidate, backward: bool) -> list[torch.Tensor]:
    if not backward:
        out, lse = candidate.run(*case.inputs)
        return [out[:, case.rows]] + ([lse[:, :, case.rows]] if candidate.lse else [])
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    grad = torch.zeros_like(case.grad).index_copy_(1, case.rows, case.grad[:, case.rows])
    grads = torch.autograd.grad(candidate.run(*leaves)[0], leaves, grad)
    return [grads[0][:, case.rows], *grads[1:]]


def _runner(case: Case, candidate: Candidate, section: str):
    if section != "backward":
        return partial(candidate.run, *case.inputs)
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    with torch.enable_grad(), torch._functorch.config.patch(donated_buffer=False):
        out = candidate.run(*leaves)[0]
    return partial(torch.autograd.grad, out, leaves, case.grad, retain_graph=True)


def _candidates(cases: list[Case], densities: tuple[float, ...], section: str) -> Iterator[tuple[Case, Candidate]]:
    first = cases[0]
    even = break_even(first.tokens, first.dtype, first.device)
    for candidate in candidates.dense(first):
        yield first, candidate
    for case, density in product(cases, densities):
        blocks = case.blocks(density)
        if section == "auto" and even < float(blocks.double().mean()) < 1:
            continue
        yield case, candidates.ours(case, blocks, lse=section != "auto")
        if case is first and (section == "forward" or (section == "backward" and case.device != "cpu")):
            for candidate in candidates.sparse(case, blocks):
                yield case, candidate


def _alone(found: list[tuple[Case, Candidate]], section: str, seconds: float) -> list[Row]:
    rows = [_row(case, section, candidate) for case, candidate in found]
    for row, (case, candidate) in zip(rows, found):
        row.wrong = check(case, candidate, backward=False)
        if row.wrong:
            return [row]
    runs = {number: partial(candidate.run, *case.inputs) for number, (case, candidate) in enumerate(found)}
    for number, time in in_turns(runs, found[0][0].device, seconds).items():
        rows[number].time, rows[number].spread = time
    return rows


def _row(case: Case, section: str, candidate: Candidate) -> Row:
    density = 1.0 if candidate.blocks is None else float(candidate.blocks.double().mean())
    return Row(
        section, candidate.name, case.device, str(case.dtype).removeprefix("torch."), case.batch, case.heads,
        case.tokens, case.dim, DENSE if candidate.blocks is None else "{}x{}".format(*case.tiles), density,
    )  # fmt: skip
