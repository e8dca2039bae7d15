"""Block-sparse attention in Triton: one program per query tile, one running softmax over all levels of the plan."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.plan import Plan
from .common import (
    DTYPES,
    LN_2,
    LOG2_E,
    block_constants,
    compiles,
    key_rows,
    launch_order,
    list_entries,
    load_rows,
    load_tile,
    odd_levels,
    strided,
    strides,
    tile_offsets,
    weighted_levels,
)
from .config import SPECIALIZED_ON, Launch, architecture, launch_for, specialized_for
from .lists import aligned, level_arguments
from .specialized import run_specialized, suits

TAIL = 32  # keys of a step over the tiles that are left: few, and narrow steps take few registers


@triton.jit
def _attend_steps(q, peak, total, acc, key, value, logw, stride_key, stride_value, indices, first, last, count, start,
                  scale, d, D: tl.constexpr, TILE: tl.constexpr, SHIFT: tl.constexpr, WEIGHTED: tl.constexpr,
                  BLOCK_N: tl.constexpr):  # fmt: skip
    """Folds the keys of some steps of one level into the running softmax (peak, total, acc), in base 2.

    Keys of WEIGHTED steps have log-weights of their own, and end with the list; others have the log-weight SHIFT.
    """
    lane = tl.arange(0, BLOCK_N)
    key_tile = key + tile_offsets(lane, stride_key, d, TILE, BLOCK_N)
    value_tile = value + tile_offsets(lane, stride_value, d, TILE, BLOCK_N)
    entry = list_entries(indices, first, count, TILE, BLOCK_N)
    for step in tl.range(first, last):
        row = key_rows(entry, step, start, TILE, BLOCK_N)
        # Read one step ahead: an index loaded in the step that uses it leaves the pipeline nothing to prefetch.
        entry = list_entries(indices, step + 1, count, TILE, BLOCK_N)
        # (BLOCK_N, BLOCK_D)
        k = load_tile(key_tile, row, stride_key, d, D, TILE, BLOCK_N)
        v = load_tile(value_tile, row, stride_value, d, D, TILE, BLOCK_N)
        # (BLOCK_M, BLOCK_N)
        s = tl.dot(q, k.to(q.dtype).T, input_precision="ieee")
        if WEIGHTED:
            # (BLOCK_N,)
            bias = tl.load(logw + row + (lane if TILE % BLOCK_N == 0 else 0)) * LOG2_E
            if TILE % BLOCK_N != 0:
                bias = tl.where(step * BLOCK_N + lane < count * TILE, bias, float("-inf"))
            s = s * scale + bias[None, :]
            new_peak = tl.maximum(peak, tl.max(s, 1))
            # A row that has seen no key yet stays at -inf; subtracting that from itself would give NaN.
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            p = tl.exp2(s - base[:, None])
        else:
            new_peak = tl.maximum(peak, tl.max(s, 1) * scale + SHIFT)
            base = new_peak
            p = tl.exp2(s * scale - (base - SHIFT)[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype).to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return peak, total, acc


@triton.jit(do_not_specialize=["lse_rows"])
def attention_kernel(query, key, value, logw, out, lse, order, rows, levels, query_strides, key_strides, value_strides,
                     logw_strides, out_strides, order_strides, rows_strides, scale, group, lse_rows, D: tl.constexpr,
                     BLOCK_Q: tl.constexpr, TILES: tl.constexpr, SHIFTS: tl.constexpr, ODD: tl.constexpr,
                     GATHER: tl.constexpr, SCATTER: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_M: tl.constexpr,
                     BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of one query tile of one head; the grid is (tiles, heads, batch): one head at a time shares the L2.

    `levels` holds (counts, full counts, counts strides, indices, indices strides, first KV row) for each level of the
    plan; `TILES` is its tile size, `SHIFTS` the log-weight in base 2 of a key that stands for a whole pool, and `ODD`
    says whether there are others. Tiles without others come first in a list: they need no log-weights of single keys.
    With GATHER query row i is token `rows[i]` of `query`, and with SCATTER it is written there.
    """
    SPLIT: tl.constexpr = (BLOCK_Q + BLOCK_M - 1) // BLOCK_M
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    kv_head = head // group
    tile = tl.load(order + batch * order_strides[0] + head * order_strides[1] + tl.program_id(0) // SPLIT).to(tl.int64)
    within = tl.program_id(0) % SPLIT * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tile * BLOCK_Q + within
    live = within < BLOCK_Q
    rows += batch * rows_strides[0] + head * rows_strides[1]
    token = tl.load(rows + row, mask=live, other=-1).to(tl.int64) if GATHER else row
    d = tl.arange(0, BLOCK_D)
    # (BLOCK_M, BLOCK_D)
    query += batch * query_strides[0] + head * query_strides[1]
    q = load_rows(query, token, query_strides[2], d, live & (token >= 0), D, True)
    if UPCAST:
        q = q.to(tl.float32)
    key += batch * key_strides[0] + kv_head * key_strides[1]
    value += batch * value_strides[0] + kv_head * value_strides[1]
    logw += batch * logw_strides[0] + kv_head * logw_strides[1]

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for level in tl.static_range(len(TILES)):
        counts, full_counts, counts_strides, indices, indices_strides, start = levels[level]
        at = batch * counts_strides[0] + head * counts_strides[1] + tile * counts_strides[2]
        count = tl.load(counts + at)
        whole = tl.load(full_counts + at) * TILES[level] // BLOCK_N
        indices += batch * indices_strides[0] + head * indices_strides[1] + tile * indices_strides[2]
        peak, total, acc = _attend_steps(
            q, peak, total, acc, key, value, logw, key_strides[2], value_strides[2], indices, 0, whole, count, start,
            scale, d, D, TILES[level], SHIFTS[level], False, BLOCK_N)  # fmt: skip
        if ODD[level] or TILES[level] % BLOCK_N != 0:
            first = whole * (BLOCK_N // TAIL_N)
            last = (count * TILES[level] + TAIL_N - 1) // TAIL_N
            peak, total, acc = _attend_steps(
                q, peak, total, acc, key, value, logw, key_strides[2], value_strides[2], indices, first, last, count,
                start, scale, d, D, TILES[level], SHIFTS[level], True, TAIL_N)  # fmt: skip

    total = tl.where(total == 0.0, 1.0, total)  # rows without any key
    # (BLOCK_M, BLOCK_D), 0 in such rows
    acc = acc / total[:, None]
    place = row
    if SCATTER:
        # read again: the registers of the loops are short
        place = tl.load(rows + row, mask=live, other=-1, volatile=True).to(tl.int64)
        live = live & (place >= 0)
    out += batch * out_strides[0] + head * out_strides[1]
    mask = live[:, None] & (d < D)[None, :]
    tl.store(out + place[:, None] * out_strides[2] + d[None, :], acc.to(out.dtype.element_ty), mask=mask)
    # (BLOCK_M,), -inf in such rows
    lse += (batch * tl.num_programs(1) + head) * lse_rows
    tl.store(lse + place, (peak + tl.log2(total)) * LN_2, mask=live)


def forward(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of row tensors, differentiable in out and lse.

    Args:
        query (`torch.Tensor`): `(B, H, Rq, D)` float32, float16 or bfloat16, in any strides.
        key, value (`torch.Tensor`): `(B, Hkv, Rkv, D)` of the same dtype, the levels of the plan one after the other.
        plan ([`Plan`]): on the device of `query`.
        scale (`float`): multiplies the scores.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, H, Rq, D)` and lse `(B, H, Rq)` in float32; a row without any key
        gives 0 and -inf.

    Raises:
        ValueError: a dtype or a device that the kernel cannot take.
        NotImplementedError: the plan has partial tiles.
    """
    check_kernel_inputs(query, plan)
    return _TritonAttention.apply(*strided(query, key, value), plan, scale)


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, plan, scale):
        out, lse = run_forward(query, key, value, plan, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        from .backward import run_backward

        grads = run_backward(
            *ctx.saved_tensors, grad_out, grad_lse, ctx.plan, ctx.scale, any(ctx.needs_input_grad[1:3])
        )
        return *grads, None, None


def run_forward(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """`forward` of tensors whose last dim is contiguous, without a gradient.

    Args:
        launch ([`Launch`], *optional*): in place of the one from the table; a specialised one falls back to the plain
            kernel where the tensors do not suit.
    """
    if scale < 0:  # the kernel takes the row maximum before scaling
        query, scale = -query, -scale
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    launch_forward(query, key, value, out, lse, plan, scale, launch)
    return out, lse


def launch_forward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, plan: Plan, scale: float,
    launch: Launch | None = None, gather: Tensor | None = None, scatter: bool = False,
) -> None:  # fmt: skip
    """Fills `out` and `lse`, for a `scale` of 0 or more.

    Args:
        gather (`torch.Tensor`, *optional*): `(B|1, H|1, Rq)`, token of each query row, where `query` holds tokens.
        scatter (`bool`, *optional*, defaults to `False`): whether `out` and `lse` hold these tokens too.
    """
    batch, heads, _, dim = query.shape
    fixed = plan.memo(
        ("forward arguments", batch, heads, key.shape[1]), lambda: _fixed_arguments(plan, batch, heads, key.shape[1])
    )
    # The interpreter multiplies the bit patterns of bfloat16.
    upcast = not compiles(attention_kernel)
    if launch is None and gather is None:
        launch = specialized_launch(query, plan)
    if launch is not None and launch.specialized and suits(launch, query, key, value, fixed.logw, plan):
        weighted = weighted_levels(plan)[0]
        run_specialized(launch, query, key, value, fixed.logw, out, lse, plan, weighted, scale, upcast)
        return
    if launch is None or launch.specialized:
        widths = fixed.constants["TILES"]
        launch = launch_for(architecture(query.device), dim, query.element_size(), plan.block_q, widths)
    rows = fixed.order if gather is None else gather.expand(batch, heads, -1)
    tiles = plan.query_shape[-1] // plan.block_q
    grid = (tiles * triton.cdiv(plan.block_q, launch.block_m), heads, batch)
    attention_kernel[grid](
        query, key, value, fixed.logw, out, lse, fixed.order, rows, fixed.levels,
        *strides(query, key, value, fixed.logw, out, fixed.order, rows), scale / math.log(2), heads // key.shape[1],
        lse.shape[-1], GATHER=gather is not None, SCATTER=scatter,
        TAIL_N=launch.block_n // 2 if upcast else min(launch.block_n, TAIL), **fixed.constants,
        **block_constants(dim, plan.block_q, launch, upcast), **launch.options(),
    )  # fmt: skip


class _Fixed(NamedTuple):
    """Arguments of the forward kernel that are the same in every call with one plan."""

    logw: Tensor
    order: Tensor
    levels: tuple[tuple, ...]
    constants: dict


def _fixed_arguments(plan: Plan, batch: int, heads: int, kv_heads: int) -> _Fixed:
    constants = {
        "TILES": tuple(lists.tile for lists in plan.lists),
        "SHIFTS": tuple(math.log2(lists.pool) for lists in plan.lists),
        "ODD": odd_levels(plan),
    }
    logw, order = plan.kv_logw.expand(batch, kv_heads, -1), aligned(launch_order(plan)).expand(batch, heads, -1)
    return _Fixed(logw, order, level_arguments(plan, batch, heads), constants)


def specialized_launch(query: Tensor, plan: Plan) -> Launch | None:
    """The warp-specialised launch for this plan where it is the default; it needs queries in the order of the plan."""
    arch = architecture(query.device)
    if arch not in SPECIALIZED_ON or len(plan.lists) > 1:
        return None
    return specialized_for(arch, query.shape[-1], query.element_size(), plan.block_q, plan.lists[0].tile)


def check_kernel_inputs(query: Tensor, plan: Plan) -> None:
    """Raise where the kernel cannot take the dtype, the device or the plan."""
    if query.dtype not in DTYPES:
        raise ValueError(f"impl='triton' takes {', '.join(map(str, DTYPES))}, got {query.dtype}; use impl='torch'")
    if query.device.type == "cpu" and compiles(attention_kernel):
        raise ValueError(
            "impl='triton' needs a GPU, the tensors are on cpu: set TRITON_INTERPRET=1 before importing triton to run "
            "the kernel in its interpreter, or use impl='torch'"
        )
    if plan.partial:
        raise NotImplementedError("impl='triton' cannot test keys against boxes in partial tiles: use impl='torch'")
