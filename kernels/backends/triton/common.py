"""What the Triton kernels of forward and backward share: how lists are read, and how plans become arguments."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.plan import Plan
from .config import Launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LN_2 = tl.constexpr(math.log(2))
LOG2_E = tl.constexpr(1 / math.log(2))


@triton.jit
def list_entries(indices, step, count, TILE: tl.constexpr, BLOCK_N: tl.constexpr):
    """List entries read by one step: a scalar where a tile fills whole steps, else one per key row of the step."""
    if TILE % BLOCK_N == 0:
        position = step // (TILE // BLOCK_N)
    else:
        position = (step * BLOCK_N + tl.arange(0, BLOCK_N)) // TILE
    # plans store tile numbers in 16 bits where these suffice; row numbers need more
    return tl.load(indices + position, mask=position < count, other=0).to(tl.int32)


@triton.jit
def key_rows(entry, step, start, TILE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first KV row of one step, or all of them `(BLOCK_N,)`, of the entries that `list_entries` read for it."""
    if TILE % BLOCK_N == 0:
        row = start + entry * TILE + step * BLOCK_N % TILE
    else:
        row = start + entry * TILE + (step * BLOCK_N + tl.arange(0, BLOCK_N)) % TILE
    return row.to(tl.int64)


@triton.jit
def tile_offsets(lane, stride, d, TILE: tl.constexpr, BLOCK_N: tl.constexpr):
    """What is the same in every step about the places `(BLOCK_N, BLOCK_D)` of its rows."""
    if TILE % BLOCK_N == 0:
        return lane[:, None] * stride + d[None, :]
    else:
        return d[None, :]


@triton.jit
def load_tile(tile, row, stride, d, D: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows `(BLOCK_N, BLOCK_D)` that `key_rows` found; `tile` is their memory moved by `tile_offsets`."""
    if TILE % BLOCK_N == 0:
        places = tile + row * stride
    else:
        places = tile + row[:, None] * stride
    if d.shape[0] == D:
        return tl.load(places)
    else:
        return tl.load(places, mask=(d < D)[None, :], other=0.0)


@triton.jit
def load_rows(rows, row, stride, d, live, D: tl.constexpr, GUARDED: tl.constexpr):
    """Rows `(n, BLOCK_D)` in memory order, 0 beyond the head dim and, if GUARDED, where not `live`."""
    mask = d[None, :] < D
    if GUARDED:
        mask = mask & live[:, None]
    return tl.load(rows + row[:, None] * stride + d[None, :], mask=mask, other=0.0)


def compiles(kernel: object) -> bool:
    """Whether `kernel` is compiled, and not run in Triton's interpreter."""
    return isinstance(kernel, triton.JITFunction)


def strided(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where their last dim is not contiguous."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


def block_constants(dim: int, block_q: int, launch: Launch, upcast: bool) -> dict:
    """The compile-time arguments that all kernels have."""
    return {
        "D": dim,
        "BLOCK_Q": block_q,
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "UPCAST": upcast,
    }


def query_constants(
    dim: int, block_q: int, tiles: tuple[int, ...], weighted: tuple[bool, ...], launch: Launch, upcast: bool = False
) -> dict:
    """The compile-time arguments of the kernels that go through the lists of a query tile."""
    return {"TILES": tiles, "WEIGHTED": weighted, **block_constants(dim, block_q, launch, upcast)}


def launch_order(plan: Plan) -> Tensor:
    """Query tiles `(B|1, H|1, NQ)` int32, those that visit most keys first: no long list starts at the end."""

    def make() -> Tensor:
        visited = sum(lists.counts * lists.tile for lists in plan.lists)
        return visited.argsort(dim=-1, descending=True, stable=True).to(torch.int32)

    return plan.memo("launch order", make)


def weighted_levels(plan: Plan) -> tuple[bool, ...]:
    """Whether a level can have log-weights other than 0."""
    return tuple(odd or lists.pool > 1 for odd, lists in zip(odd_levels(plan), plan.lists))


def odd_levels(plan: Plan) -> tuple[bool, ...]:
    """Whether a level can have keys that stand for fewer tokens than its pool, padding among them.

    By shapes alone: reading the order would wait for the device.
    """
    full = plan.order.shape[-1] == plan.tokens and plan.key_mask is None
    return tuple(not full or plan.level_rows(lists) * lists.pool > plan.tokens for lists in plan.lists)


def strides(*tensors: Tensor) -> list[tuple[int, ...]]:
    """The first three strides of each tensor."""
    return [tensor.stride()[:3] for tensor in tensors]
