"""The launches of the Triton kernels that `compile_report` compiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from diffattn.kernels.backends.triton.backward import run_backward
from diffattn.kernels.backends.triton.config import Launch, launch_for, specialized_for
from diffattn.kernels.backends.triton.forward import run_forward
from diffattn.kernels.backends.triton.merge import merge_rows
from diffattn.kernels.backends.triton.tokens import attend_tokens
from diffattn.kernels.plan import Plan, TileList

KERNELS = ("forward", "specialized", "dq", "dkv")
NAMES = {
    "forward": "attention_kernel", "specialized": "specialized_kernel", "dq": "query_gradient_kernel",
    "dkv": "key_gradient_kernel", "pool": "pool_kernel", "merge": "merge_kernel",
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOKENS, HEADS = 500, 2  # padded to 512 rows, so that some keys have log-weights of their own
Levels = tuple[tuple[int, int], ...]  # pool and tile
AUTO: Levels = ((1, 128), (4, 32), (16, 8), (128, 1))
PYRAMID: Levels = ((1, 128), (2, 64), (4, 32), (8, 16))
SOL: Levels = ((1, 64), (64, 1))


class Case(NamedTuple):
    """One launch of a kernel: query tiles of `block_q` rows, and the pool and the tile of every level."""

    kernel: str
    arch: str
    dim: int
    dtype: str
    block_q: int
    levels: Levels

    @property
    def tiles(self) -> tuple[int, ...]:
        """Rows of a KV tile, by level."""
        return tuple(tile for _, tile in self.levels)

    @property
    def launch(self) -> Launch | None:
        """The launch that the table gives it; None for kernels without a table."""
        itemsize = DTYPES[self.dtype].itemsize
        at = (self.arch, self.dim, itemsize, self.block_q)
        if self.kernel == "specialized":
            return specialized_for(*at, self.tiles[0])
        return launch_for(*at, self.tiles, self.kernel) if self.kernel in KERNELS else None

    def run(self) -> None:
        """Launch it, as the project does."""
        plan = plan_of(self.levels, self.block_q)
        dtype = DTYPES[self.dtype]
        query, key, value = torch.zeros(3, 1, TOKENS, HEADS, self.dim, dtype=dtype)
        if self.kernel in ("forward", "pool"):
            attend_tokens(query, key, value, plan, 1.0)
            return
        rows = plan.query_shape[-1]
        queries = torch.zeros(1, rows, HEADS, self.dim, dtype=dtype).transpose(1, 2)
        keys, values = torch.zeros(2, 1, HEADS, plan.kv_counts.shape[-1], self.dim, dtype=dtype)
        lse = torch.zeros(1, HEADS, rows)
        if self.kernel == "specialized":
            run_forward(queries, keys, values, plan, 1.0, self.launch)
        elif self.kernel == "merge":
            merged = query.transpose(1, 2)
            merge_rows(queries, lse, plan.order, merged, lse[..., :TOKENS].contiguous())
        else:
            run_backward(queries, keys, values, queries, lse, queries, lse, plan, 1.0, self.kernel == "dkv")


def plan_of(levels: Levels, block_q: int) -> Plan:
    """A plan in which every query tile visits every KV tile of every level."""
    rows = torch.arange(-(-TOKENS // 128) * 128)
    order = rows.where(rows < TOKENS, -1)[None, None]
    lists = []
    for pool, tile in levels:
        mask = torch.ones(1, HEADS, len(rows) // block_q, -(-len(rows) // (pool * tile)), dtype=torch.bool)
        lists.append(TileList.from_mask(mask, tile, pool))
    return Plan(TOKENS, order, tuple(lists), block_q)


def cases(archs: list[str], quick: bool = False) -> Iterator[Case]:
    """Every launch of the table once, and the default plans; `quick`: one of forward, and of all on sm_90."""
    for arch in archs:
        if quick:
            kernels = (*KERNELS, "pool", "merge") if arch == "sm_90" else ("forward",)
            yield from (Case(kernel, arch, 128, "bf16", 128, ((1, 64),)) for kernel in kernels)
            continue
        seen = set()
        for case in _all_cases(arch):
            at = (case.kernel, case.dim, case.dtype, case.launch, min(case.tiles) < 64, len(case.levels))
            if (case.kernel != "specialized" or case.launch is not None) and at not in seen:
                seen.add(at)
                yield case


def _all_cases(arch: str) -> Iterator[Case]:
    for kernel in KERNELS:
        for dim in (64, 128, 256):
            for block_q, tile in ((128, 128), (128, 64), (64, 64)):
                yield Case(kernel, arch, dim, "bf16", block_q, ((1, tile),))
            # One table for all architectures, and no matrix units: one stands for them.
            if kernel != "specialized" and arch == "sm_80":
                yield Case(kernel, arch, dim, "fp32", 64, ((1, 64),))
    for kernel in ("forward", "dq"):
        yield from (Case(kernel, arch, 128, "bf16", block_q, levels) for block_q, levels in DEFAULTS)
        yield Case(kernel, arch, 64, "bf16", *DEFAULTS[0])
    yield Case("dkv", arch, 128, "bf16", 128, ((1, 16),))
    yield Case("pool", arch, 128, "bf16", *DEFAULTS[0])
    yield Case("merge", arch, 128, "bf16", 128, ((1, 128),))


DEFAULTS = ((128, AUTO), (128, PYRAMID), (64, SOL))  # plans of several levels; all others have one level of 128 or 64
