"""The KV rows of all levels of a plan in one pass over the tokens: each is read once and no copy is made between."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.plan import Plan
from .common import compiles, load_rows, strides

CHUNK = 64  # least rows of one program


@triton.jit(do_not_specialize=["order_rows"])
def pool_kernel(tokens, rows, order, valid, tokens_strides, rows_strides, order_strides, valid_strides, order_rows,
                starts, ends, D: tl.constexpr, POOLS: tl.constexpr, CHUNK: tl.constexpr,
                BLOCK_D: tl.constexpr):  # fmt: skip
    """CHUNK rows of the order of one head, as they are and as means; the grid is (chunks, Hkv, B).

    `starts` and `ends` are the first row and the row after the last of each level. A mean runs over the valid tokens
    of a pool, in float32.
    """
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = lane < order_rows
    token = tl.load(order + batch * order_strides[0] + head * order_strides[1] + lane, mask=inside, other=-1)
    seen = tl.load(valid + batch * valid_strides[0] + head * valid_strides[1] + lane, mask=inside, other=0) != 0
    d = tl.arange(0, BLOCK_D)
    tokens += batch * tokens_strides[0] + head * tokens_strides[1]
    rows += batch * rows_strides[0] + head * rows_strides[1]
    # (CHUNK, BLOCK_D), 0 where there is no valid token
    x = load_rows(tokens, token.to(tl.int64), tokens_strides[2], d, seen, D, True)
    for level in tl.static_range(len(POOLS)):
        mean = _means(x, seen, POOLS[level], CHUNK, BLOCK_D)
        row = tl.program_id(0) * (CHUNK // POOLS[level]) + tl.arange(0, CHUNK // POOLS[level]) + starts[level]
        place = row.to(tl.int64)[:, None] * rows_strides[2] + d[None, :]
        mask = (row < ends[level])[:, None] & (d < D)[None, :]
        tl.store(rows + place, mean.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def _means(x, seen, POOL: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr):
    if POOL == 1:
        return x
    else:
        count = tl.sum(tl.reshape(seen.to(tl.float32), (CHUNK // POOL, POOL)), 1)
        total = tl.sum(tl.reshape(x.to(tl.float32), (CHUNK // POOL, POOL, BLOCK_D)), 1)
        return total / tl.maximum(count, 1.0)[:, None]


def pool_rows(tokens: Tensor, plan: Plan) -> Tensor:
    """Tokens `(B, S, H, D)` as the KV rows `(B, H, Rkv, D)` of all levels, without a gradient.

    The same as `build_pyramid`, but for rows of tokens that `Plan.key_mask` excludes, which are 0.
    """
    tokens = tokens.transpose(1, 2)
    tokens = tokens if tokens.stride(-1) == 1 else tokens.contiguous()
    batch, heads, _, dim = tokens.shape
    fixed = plan.memo(("pool arguments", batch, heads), lambda: _fixed_arguments(plan, batch, heads))
    # the interpreter cuts bfloat16 off where a GPU rounds
    dtype = tokens.dtype if compiles(pool_kernel) else torch.promote_types(tokens.dtype, torch.float32)
    rows = torch.empty(batch, heads, fixed.ends[-1], dim, dtype=dtype, device=tokens.device)
    pool_kernel[(fixed.chunks, heads, batch)](
        tokens, rows, fixed.order, fixed.valid, *strides(tokens, rows, fixed.order, fixed.valid),
        fixed.order.shape[-1], fixed.starts, fixed.ends, D=dim, **fixed.constants,
        BLOCK_D=max(16, triton.next_power_of_2(dim)), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return rows


class _Fixed(NamedTuple):
    """Arguments of the kernel that are the same in every call with one plan; `chunks` are its programs for a head."""

    order: Tensor
    valid: Tensor
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    chunks: int
    constants: dict


def _fixed_arguments(plan: Plan, batch: int, heads: int) -> _Fixed:
    order, valid = (part.expand(batch, heads, -1) for part in (plan.order, plan.valid_keys))
    starts = tuple(plan.level_start(lists) for lists in plan.lists)
    ends = tuple(start + plan.level_rows(lists) for start, lists in zip(starts, plan.lists))
    pools = tuple(lists.pool for lists in plan.lists)
    chunk = max(CHUNK, *pools)
    span = max((end - start) * pool for start, end, pool in zip(starts, ends, pools))
    return _Fixed(order, valid, starts, ends, triton.cdiv(span, chunk), {"POOLS": pools, "CHUNK": chunk})


def can_pool(plan: Plan) -> bool:
    """Whether `pool_rows` can make the rows of `plan`: pools are powers of 2, and fit into one program."""
    return all(lists.pool & (lists.pool - 1) == 0 and lists.pool <= 256 for lists in plan.lists)
