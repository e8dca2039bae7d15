"""What a plan costs next to the dense attention it replaces: `python -m benchmarks.planning --help`.

Time is a ratio within one run, on the CPU; memory is the plan's tensors over query, key and value in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from diffattn.kernels.plan.routed import RoutedRows
from torch import Tensor

import diffattn
from diffattn import AttentionConfig, Plan, TokenGrid
from diffattn.analysis.synthetic import structured_qkv

from . import RESULTS
from .quality.contenders import dense
from .quality.report import markdown
from .timing import once

GRIDS = {"16k": TokenGrid(16, 32, 32), "32k": TokenGrid(21, 30, 52)}
CASES = {
    "auto": ("auto", {}, 0),
    "pyramid": ("pyramid", {}, 0),
    "rectified": ("rectified", {}, 0),
    "sol": ("sol", {}, 0),
    "vmoba, chunks in time": ("vmoba", {}, 0),
    "vmoba, chunks in space": ("vmoba", {}, 1),
    "vmoba, chunks in both": ("vmoba", {}, 2),
    "vmoba, tile routing": ("vmoba", {"routing": "tile"}, 2),
}
TIMES = 3
BYTES = 2  # of a bfloat16


def measure(grid: TokenGrid, heads: int, dim: int, density: float) -> Iterator[tuple[str, float, float]]:
    """For each dynamic method: name, planning time over dense time, and bytes of the plan over those of q, k and v."""
    query, key, value = structured_qkv(grid, heads=heads, dim=dim)
    dense_time = once(lambda: dense(query, key, value), "cpu")
    for name, (method, options, layer) in CASES.items():
        config = diffattn.config(method, density=density, **options)
        plan = config.plan(grid, query.bfloat16(), key.bfloat16(), layer=layer)  # what a run keeps is kept now
        run = partial(_plan_and_rows, config, grid, query, key, layer)
        seconds = min(once(run, "cpu") for _ in range(TIMES))
        yield name, seconds / dense_time, plan_bytes(plan) / (3 * query.numel() * BYTES)


def _plan_and_rows(config: AttentionConfig, grid: TokenGrid, query: Tensor, key: Tensor, layer: int) -> Tensor:
    """Make a plan, and the rows of queries where it keeps them as bits."""
    return config.plan(grid, query, key, layer=layer).query_rows


def plan_bytes(plan: Plan) -> int:
    """Bytes of the tensors that a plan holds."""
    tensors: list[Tensor | RoutedRows | None] = [plan.order, plan.q_rows]
    for lists in plan.lists:
        tensors += [lists.counts, lists.indices, lists.partial]
    if plan.post is not None:
        tensors += [plan.post.scale, plan.post.weights]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--tokens", nargs="+", choices=GRIDS, default=list(GRIDS), help="lengths to measure")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS / "planning.md")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {name: [name] for name in CASES}
    for tokens in options.tokens:
        for name, share, memory in measure(GRIDS[tokens], options.heads, options.dim, options.density):
            rows[name] += [f"{share:.1%}", f"{memory:.1%}"]
    head = ["", *(f"{what} at {tokens}" for tokens in options.tokens for what in ("time", "memory"))]
    grids = ", ".join(f"{tokens} is {GRIDS[tokens]}, {GRIDS[tokens].tokens} tokens" for tokens in options.tokens)
    text = (
        "# What a plan costs\n\n`python -m benchmarks.planning`\n\nTime to make a plan over the time of dense "
        f"attention (both float32 on the CPU, {torch.get_num_threads()} threads, in one run, the best of {TIMES} "
        "plans), and bytes of the plan over those of query, key and value in bfloat16. Density "
        f"{options.density:g}, {options.heads} heads of {options.dim}; {grids}. The order of the tokens is shared by "
        "all heads: with more heads memory is less. Static methods (radial, neighborhood) plan once for a run.\n\n"
        f"{markdown(head, list(rows.values()))}\n"
    )
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
