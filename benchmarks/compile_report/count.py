"""How many kernels the plans of one grid need, counted by Triton's own key, without a GPU and without compiling.

python -m benchmarks.compile_report.count --plans 20
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from unittest import mock

import torch
from diffattn.kernels.backends.triton.tokens import attend_tokens
from triton.runtime.jit import JITFunction

import diffattn
from diffattn import TokenGrid

from .stand_in import compiling_for


def count(method: str, grid: TokenGrid, plans: int, arch: str = "sm_90") -> dict:
    """Kernels by name that `plans` plans of different densities need, and the widths of the lists of each plan."""
    widths = []

    def keep(self: JITFunction, key: str, signature: dict, device: int, *others: object) -> object:
        self.device_caches[device][0][key] = object()
        return self.device_caches[device][0][key]

    with compiling_for(arch) as launched, mock.patch.object(JITFunction, "_do_compile", keep):
        for seed in range(plans):
            generator = torch.Generator().manual_seed(seed)
            query, key = torch.randn(2, 1, grid.tokens, 2, 64, generator=generator, dtype=torch.bfloat16)
            config = diffattn.config(method, density=0.1 + 0.02 * seed)
            plan = config.plan(grid, query, key, layer=0)
            widths.append([lists.indices.shape[-2:] for lists in plan.lists])
            attend_tokens(query, key, key, plan, 0.125)
    return {"kernels": Counter(launch.kernel for launch in launched if launch.new), "widths": list(map(str, widths))}


def main(argv: list[str] | None = None) -> None:
    """Count, and print as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report.count", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["auto", "pyramid", "rectified", "vmoba", "sol"])
    parser.add_argument("--plans", type=int, default=20)
    args = parser.parse_args(argv)
    grid = TokenGrid(5, 12, 13)  # with text some query tiles visit everything, and all lists are as wide
    print(json.dumps({method: count(method, grid, args.plans) for method in args.methods}))


if __name__ == "__main__":
    main()
