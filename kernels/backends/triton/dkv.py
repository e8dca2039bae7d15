"""The gradients of key and value in Triton: one program per block of KV rows, along the transposed lists.

No atomics, so that every run gives the same bits; the formulas are in backward.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.plan import Plan
from ...plan.tile_list import TileList
from ...plan.transpose import MAX_GROUP, visitors
from .common import LOG2_E, block_constants, compiles, load_rows, strides
from .config import Launch, architecture, launch_for


@triton.jit(do_not_specialize=["rows", "start", "level_rows"])
def key_gradient_kernel(query, key, value, logw, grad_out, lse, delta, grad_key, grad_value, order, first, counts,
                        visitors, bits, query_strides, key_strides, value_strides, logw_strides, grad_out_strides,
                        grad_key_strides, grad_value_strides, order_strides, lists_strides, scale, group, rows, start,
                        level_rows, D: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr,
                        WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                        UPCAST: tl.constexpr):  # fmt: skip
    """dk and dv of BLOCK_N rows of one level, for GROUP KV tiles or a part of one; the grid is (blocks, Hkv, B).

    `first`, `counts`, `visitors` and `bits` are the transposed lists; the heads that share a KV head are summed here,
    in order, so that nothing larger than dk and dv is ever written.
    """
    SPAN: tl.constexpr = TILE * GROUP
    SPLIT: tl.constexpr = (SPAN + BLOCK_N - 1) // BLOCK_N
    batch, kv_head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    block = tl.load(order + batch * order_strides[0] + kv_head * order_strides[1] + tl.program_id(0) // SPLIT)
    lane = tl.program_id(0) % SPLIT * BLOCK_N + tl.arange(0, BLOCK_N)
    local = block * SPAN + lane
    live = (lane < SPAN) & (local < level_rows)
    row = (start + local).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    # (BLOCK_N, BLOCK_D)
    k = load_rows(key + batch * key_strides[0] + kv_head * key_strides[1], row, key_strides[2], d, live, D, True)
    value += batch * value_strides[0] + kv_head * value_strides[1]
    v = load_rows(value, row, value_strides[2], d, live, D, True)
    if UPCAST:
        k, v = k.to(tl.float32), v.to(tl.float32)
    # (BLOCK_N,)
    logw += batch * logw_strides[0] + kv_head * logw_strides[1]
    bias = tl.load(logw + row, mask=live, other=0.0) * LOG2_E if WEIGHTED else tl.zeros([BLOCK_N], tl.float32)

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for member in range(group):
        head = kv_head * group + member
        at = batch * lists_strides[0] + head * lists_strides[1] + block * lists_strides[2]
        begin, count = tl.load(first + at), tl.load(counts + at)
        stat = (batch * tl.num_programs(1) * group + head) * rows
        dk, dv = _key_gradient_head(
            k, v, bias, dk, dv, query + batch * query_strides[0] + head * query_strides[1],
            grad_out + batch * grad_out_strides[0] + head * grad_out_strides[1], lse + stat, delta + stat,
            query_strides[2], grad_out_strides[2], visitors + begin, bits + begin, count, lane // TILE,
            scale * LOG2_E, d, D, BLOCK_Q, GROUP, WEIGHTED, BLOCK_M)  # fmt: skip

    mask = live[:, None] & (d < D)[None, :]
    grad_key += batch * grad_key_strides[0] + kv_head * grad_key_strides[1]
    dk = (dk * scale).to(grad_key.dtype.element_ty)
    tl.store(grad_key + row[:, None] * grad_key_strides[2] + d[None, :], dk, mask=mask)
    grad_value += batch * grad_value_strides[0] + kv_head * grad_value_strides[1]
    tl.store(
        grad_value + row[:, None] * grad_value_strides[2] + d[None, :], dv.to(grad_value.dtype.element_ty), mask=mask
    )


@triton.jit
def _key_gradient_head(k, v, bias, dk, dv, query, grad_out, lse, delta, stride_query, stride_grad_out, visitors, bits,
                       count, tile, scale, d, D: tl.constexpr, BLOCK_Q: tl.constexpr, GROUP: tl.constexpr,
                       WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """Adds the query tiles of one head that visit the block to dk and dv; `tile` numbers each key's tile."""
    SPLIT: tl.constexpr = (BLOCK_Q + BLOCK_M - 1) // BLOCK_M
    GUARDED: tl.constexpr = BLOCK_Q % BLOCK_M != 0
    visitor = tl.load(visitors, mask=count > 0, other=0)
    for step in tl.range(count * SPLIT):
        within = step % SPLIT * BLOCK_M + tl.arange(0, BLOCK_M)
        live = within < BLOCK_Q
        row = (visitor * BLOCK_Q + within).to(tl.int64)
        following = (step + 1) // SPLIT
        visitor = tl.load(visitors + following, mask=following < count, other=0)
        # (BLOCK_M, BLOCK_D)
        q = load_rows(query, row, stride_query, d, live, D, GUARDED)
        do = load_rows(grad_out, row, stride_grad_out, d, live, D, GUARDED)
        # (BLOCK_M,)
        total = tl.load(lse + row, mask=live, other=float("-inf"))
        total = tl.where(total == float("-inf"), float("inf"), total * LOG2_E)
        shift = tl.load(delta + row, mask=live, other=0.0)
        # (BLOCK_N, BLOCK_M): transposed, so that probabilities are left operands, which may stay in registers
        s = tl.dot(k, q.to(k.dtype).T, input_precision="ieee") * scale - total[None, :]
        if WEIGHTED:
            s += bias[:, None]
        if GROUP > 1:
            seen = (tl.load(bits + step // SPLIT) >> tile) & 1
            s = tl.where((seen == 1)[:, None], s, float("-inf"))
        p = tl.exp2(s)
        dv = tl.dot(p.to(do.dtype).to(k.dtype), do.to(k.dtype), dv, input_precision="ieee")
        dp = tl.dot(v, do.to(v.dtype).T, input_precision="ieee")
        ds = p * (dp - shift[None, :])
        dk = tl.dot(ds.to(q.dtype).to(k.dtype), q.to(k.dtype), dk, input_precision="ieee")
    return dk, dv


def run_key_gradient(
    query: Tensor, key: Tensor, value: Tensor, logw: Tensor, grad_out: Tensor, lse: Tensor, delta: Tensor,
    grad_key: Tensor, grad_value: Tensor, plan: Plan, lists: TileList, weighted: bool, scale: float,
) -> None:  # fmt: skip
    """Fills the rows of one level in `grad_key` and `grad_value`.

    Args:
        query, grad_out (`torch.Tensor`): `(B, H, Rq, D)`.
        key, value, grad_key, grad_value (`torch.Tensor`): `(B, Hkv, Rkv, D)`.
        logw (`torch.Tensor`): `(B, Hkv, Rkv)` float32.
        lse, delta (`torch.Tensor`): `(B, H, Rq)` float32, contiguous; delta is rowsum(dO * O) - dLSE.
        lists ([`TileList`]): the level of `plan`.
        weighted (`bool`): whether its log-weights can be other than 0.
    """
    batch, heads, rows, dim = query.shape
    group = heads // key.shape[1]
    launch = launch_for(architecture(query.device), dim, query.element_size(), plan.block_q, (lists.tile,), "dkv")
    found = visitors(plan, lists, tiles_in_block(lists.tile, launch))
    first, counts = (part.expand(batch, heads, -1) for part in (found.first, found.counts))
    order = _block_order(plan, lists, found.counts, group).expand(batch, key.shape[1], -1)
    span = lists.tile * found.group
    grid = (counts.shape[-1] * triton.cdiv(span, launch.block_n), key.shape[1], batch)
    key_gradient_kernel[grid](
        query, key, value, logw, grad_out, lse, delta, grad_key, grad_value, order, first, counts, found.tiles,
        found.bits, *strides(query, key, value, logw, grad_out, grad_key, grad_value, order, counts),
        scale, group, rows, plan.level_start(lists), plan.level_rows(lists),
        **key_constants(dim, plan.block_q, lists.tile, weighted, launch, not compiles(key_gradient_kernel)),
        **launch.options(),
    )  # fmt: skip


def key_constants(dim: int, block_q: int, tile: int, weighted: bool, launch: Launch, upcast: bool = False) -> dict:
    """The compile-time arguments of `key_gradient_kernel`."""
    level = {"TILE": tile, "GROUP": tiles_in_block(tile, launch), "WEIGHTED": weighted}
    return level | block_constants(dim, block_q, launch, upcast)


def tiles_in_block(tile: int, launch: Launch) -> int:
    """KV tiles that one program of `key_gradient_kernel` takes; 1 where a tile fills one or more programs."""
    return min(max(1, launch.block_n // tile), MAX_GROUP)


def _block_order(plan: Plan, lists: TileList, counts: Tensor, group: int) -> Tensor:
    """Groups of KV tiles `(B|1, Hkv|1, NG)` int32, those with most visits first."""

    def make() -> Tensor:
        visits = counts.unflatten(1, (-1, group)).sum(2) if counts.shape[1] > 1 else counts
        return visits.argsort(dim=-1, descending=True, stable=True).to(torch.int32)

    return plan.memo(("block order", plan.lists.index(lists), counts.shape[-1], group), make)
