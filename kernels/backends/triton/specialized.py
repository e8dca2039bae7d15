"""The forward kernel with warps that only load, for sm_90 and sm_100: TMA reads in a warp-specialised loop.

Triton 3.6 to 3.9 crash on most ways to write this loop. This one compiles: 2-D descriptors made on the device for
query, key and value, one descriptor for the log-weights, the index loaded in the step that uses it, and nothing else
that could be pipelined. So it takes one level only; plans with several levels run on the plain kernel.
"""

from __future__ import annotations

import contextvars
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.plan import Plan
from .common import LN_2, LOG2_E, block_constants, launch_order, strides
from .config import Launch


@triton.jit
def specialized_kernel(query, key, value, logw, out, lse, order, counts, indices, query_strides, key_strides,
                       value_strides, logw_strides, out_strides, order_strides, counts_strides, indices_strides, scale,
                       group, rows, kv_rows, D: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr,
                       WEIGHTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                       UPCAST: tl.constexpr):  # fmt: skip
    """As `attention_kernel`, for one level, query tiles of whole blocks and KV tiles of whole steps."""
    SPLIT: tl.constexpr = BLOCK_Q // BLOCK_M
    STEPS: tl.constexpr = TILE // BLOCK_N
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    kv_head = head // group
    tile = tl.load(order + batch * order_strides[0] + head * order_strides[1] + tl.program_id(0) // SPLIT)
    count = tl.load(counts + batch * counts_strides[0] + head * counts_strides[1] + tile * counts_strides[2])
    indices += batch * indices_strides[0] + head * indices_strides[1] + tile.to(tl.int64) * indices_strides[2]
    begin = tile * BLOCK_Q + tl.program_id(0) % SPLIT * BLOCK_M
    query += batch * query_strides[0] + head * query_strides[1]
    key += batch * key_strides[0] + kv_head * key_strides[1]
    value += batch * value_strides[0] + kv_head * value_strides[1]
    logw += batch * logw_strides[0] + kv_head * logw_strides[1]
    queries = tl.make_tensor_descriptor(query, [rows, D], [query_strides[2], 1], [BLOCK_M, BLOCK_D])
    keys = tl.make_tensor_descriptor(key, [kv_rows, D], [key_strides[2], 1], [BLOCK_N, BLOCK_D])
    values = tl.make_tensor_descriptor(value, [kv_rows, D], [value_strides[2], 1], [BLOCK_N, BLOCK_D])
    weights = tl.make_tensor_descriptor(logw, [kv_rows], [1], [BLOCK_N])
    # (BLOCK_M, BLOCK_D)
    q = queries.load([begin, 0])
    if UPCAST:
        q = q.to(tl.float32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for step in tl.range(count * STEPS, warp_specialize=True):
        at = tl.load(indices + step // STEPS).to(tl.int32) * TILE + step % STEPS * BLOCK_N
        # (BLOCK_N, BLOCK_D)
        k, v = keys.load([at, 0]), values.load([at, 0])
        # (BLOCK_M, BLOCK_N)
        s = tl.dot(q, k.to(q.dtype).T, input_precision="ieee") * scale
        if WEIGHTED:
            s += (weights.load([at]) * LOG2_E)[None, :]
        new_peak = tl.maximum(peak, tl.max(s, 1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype).to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
        peak = new_peak

    total = tl.where(total == 0.0, 1.0, total)  # rows without any key
    acc = acc / total[:, None]
    row = begin.to(tl.int64) + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    out += batch * out_strides[0] + head * out_strides[1]
    tl.store(out + row[:, None] * out_strides[2] + d[None, :], acc.to(out.dtype.element_ty), mask=d[None, :] < D)
    lse += (batch * tl.num_programs(1) + head) * rows
    tl.store(lse + row, (peak + tl.log2(total)) * LN_2)


def suits(launch: Launch, query: Tensor, key: Tensor, value: Tensor, logw: Tensor, plan: Plan) -> bool:
    """Whether `specialized_kernel` can read these tensors: whole blocks only, everything aligned to 16 bytes."""
    if len(plan.lists) > 1 or plan.block_q % launch.block_m or plan.lists[0].tile % launch.block_n:
        return False
    return all(_aligned(rows, 3) for rows in (query, key, value)) and logw.stride(-1) == 1 and _aligned(logw, 2)


def _aligned(tensor: Tensor, dims: int) -> bool:
    """Whether the tensor and all its steps along the first `dims` dims begin at multiples of 16 bytes."""
    steps = [step * tensor.element_size() for step, size in zip(tensor.stride()[:dims], tensor.shape) if size > 1]
    return all(place % 16 == 0 for place in (tensor.data_ptr(), *steps))


def run_specialized(
    launch: Launch, query: Tensor, key: Tensor, value: Tensor, logw: Tensor, out: Tensor, lse: Tensor, plan: Plan,
    weighted: bool, scale: float, upcast: bool,
) -> None:  # fmt: skip
    """Fills `out` and `lse` as `run_forward` does, for tensors that `suits` accepts."""
    (lists,) = plan.lists
    batch, heads, rows, dim = query.shape
    order = launch_order(plan).expand(batch, heads, -1)
    counts, indices = lists.counts.expand(batch, heads, -1), lists.indices.expand(batch, heads, -1, -1)
    context = contextvars.copy_context()  # other users of Triton keep their allocator
    context.run(triton.set_allocator, _allocate)
    context.run(
        specialized_kernel[(rows // launch.block_m, heads, batch)],
        query, key, value, logw, out, lse, order, counts, indices,
        *strides(query, key, value, logw, out, order, counts, indices), scale / math.log(2), heads // key.shape[1],
        rows, key.shape[2], **specialized_constants(dim, plan.block_q, lists.tile, weighted, launch, upcast),
        **launch.options(),
    )  # fmt: skip


def specialized_constants(
    dim: int, block_q: int, tile: int, weighted: bool, launch: Launch, upcast: bool = False
) -> dict:
    """The compile-time arguments of `specialized_kernel`."""
    return {"TILE": tile, "WEIGHTED": weighted, **block_constants(dim, block_q, launch, upcast)}


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors that a kernel makes; Triton asks for it at launch."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
