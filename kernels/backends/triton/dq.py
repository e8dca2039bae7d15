"""The gradient of query in Triton: one program per query tile, along its lists. Formulas: backward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LOG2_E, key_rows, list_entries, load_rows, load_tile, tile_offsets


@triton.jit(do_not_specialize=["rows"])
def query_gradient_kernel(query, key, value, logw, out, lse, grad_out, grad_lse, grad_query, delta, order, levels,
                          query_strides, key_strides, value_strides, logw_strides, out_strides, grad_out_strides,
                          grad_query_strides, order_strides, scale, group, rows, D: tl.constexpr,
                          BLOCK_Q: tl.constexpr, TILES: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr,
                          BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """dq of BLOCK_M rows of one query tile; also writes `delta`, rowsum(dO * O) - dLSE, for the other kernel.

    Grid and arguments as in `attention_kernel`.
    """
    SPLIT: tl.constexpr = (BLOCK_Q + BLOCK_M - 1) // BLOCK_M
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    kv_head = head // group
    tile = tl.load(order + batch * order_strides[0] + head * order_strides[1] + tl.program_id(0) // SPLIT).to(tl.int64)
    within = tl.program_id(0) % SPLIT * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tile * BLOCK_Q + within
    live = within < BLOCK_Q
    d = tl.arange(0, BLOCK_D)
    # (BLOCK_M, BLOCK_D)
    o = load_rows(out + batch * out_strides[0] + head * out_strides[1], row, out_strides[2], d, live, D, True)
    grad_out += batch * grad_out_strides[0] + head * grad_out_strides[1]
    do = load_rows(grad_out, row, grad_out_strides[2], d, live, D, True)
    # (BLOCK_M,)
    at = (batch * tl.num_programs(1) + head) * rows + row
    total = tl.load(lse + at, mask=live, other=float("-inf"))
    empty = total == float("-inf")
    # A gradient of a log-sum-exp of nothing may be NaN; it must not matter.
    shift = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) - tl.load(grad_lse + at, mask=live, other=0.0)
    shift = tl.where(empty, 0.0, shift)
    tl.store(delta + at, shift, mask=live)
    total = tl.where(empty, float("inf"), total * LOG2_E)

    query += batch * query_strides[0] + head * query_strides[1]
    q = load_rows(query, row, query_strides[2], d, live, D, True)
    if UPCAST:
        q, do = q.to(tl.float32), do.to(tl.float32)
    key += batch * key_strides[0] + kv_head * key_strides[1]
    value += batch * value_strides[0] + kv_head * value_strides[1]
    logw += batch * logw_strides[0] + kv_head * logw_strides[1]
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for level in tl.static_range(len(TILES)):
        counts, _, counts_strides, indices, indices_strides, start = levels[level]
        count = tl.load(counts + batch * counts_strides[0] + head * counts_strides[1] + tile * counts_strides[2])
        indices += batch * indices_strides[0] + head * indices_strides[1] + tile * indices_strides[2]
        dq = _query_gradient_level(
            q, do, total, shift, dq, key, value, logw, key_strides[2], value_strides[2], indices, count, start,
            scale * LOG2_E, d, D, TILES[level], WEIGHTED[level], BLOCK_N)  # fmt: skip

    grad_query += batch * grad_query_strides[0] + head * grad_query_strides[1]
    mask = live[:, None] & (d < D)[None, :]
    dq = (dq * scale).to(grad_query.dtype.element_ty)
    tl.store(grad_query + row[:, None] * grad_query_strides[2] + d[None, :], dq, mask=mask)


@triton.jit
def _query_gradient_level(q, do, total, shift, dq, key, value, logw, stride_key, stride_value, indices, count, start,
                          scale, d, D: tl.constexpr, TILE: tl.constexpr, WEIGHTED: tl.constexpr,
                          BLOCK_N: tl.constexpr):  # fmt: skip
    """Adds the visited keys of one level to dq, without the factor `scale`."""
    PACKED: tl.constexpr = TILE % BLOCK_N != 0
    lane = tl.arange(0, BLOCK_N)
    key_tile = key + tile_offsets(lane, stride_key, d, TILE, BLOCK_N)
    value_tile = value + tile_offsets(lane, stride_value, d, TILE, BLOCK_N)
    entry = list_entries(indices, 0, count, TILE, BLOCK_N)
    for step in tl.range((count * TILE + BLOCK_N - 1) // BLOCK_N):
        row = key_rows(entry, step, start, TILE, BLOCK_N)
        entry = list_entries(indices, step + 1, count, TILE, BLOCK_N)
        # (BLOCK_N, BLOCK_D)
        k = load_tile(key_tile, row, stride_key, d, D, TILE, BLOCK_N)
        v = load_tile(value_tile, row, stride_value, d, D, TILE, BLOCK_N)
        # (BLOCK_M, BLOCK_N)
        s = tl.dot(q, k.to(q.dtype).T, input_precision="ieee") * scale - total[:, None]
        if WEIGHTED:
            s += (tl.load(logw + row + (lane if TILE % BLOCK_N == 0 else 0)) * LOG2_E)[None, :]
        if PACKED:
            s = tl.where((step * BLOCK_N + lane < count * TILE)[None, :], s, float("-inf"))
        dp = tl.dot(do, v.to(do.dtype).T, input_precision="ieee")
        ds = tl.exp2(s) * (dp - shift[:, None])
        dq = tl.dot(ds.to(k.dtype).to(q.dtype), k.to(q.dtype), dq, input_precision="ieee")
    return dq
