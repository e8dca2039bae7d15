"""Dense attention in place of the tiles of a plan: when it is faster, and the call that gives the same result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..plan.plan import Plan
from .torch.softmax import flash_cpu, has_amx

MASK_TOKENS = 1024  # a mask of so many tokens squared is small
USUAL_TILE = 128  # query rows of the tiles with which the break-even of long sequences was measured
GATHER_ROWS = 43  # query rows whose products take a CPU as long as gathering their keys and values, measured
PARTIAL_FACTOR = 2.5  # additional time of a partial tile on a CPU, in times of a whole one, measured


def plan_cost(plan: Plan) -> float:
    """Products that the tiles of a plan compute over the S x S of dense attention, to compare with `break_even`.

    Unlike `Plan.computed` it includes padding and, on a CPU, the additional time of small and partial tiles.
    """
    return plan.memo("cost", lambda: _cost(plan))


def _cost(plan: Plan) -> float:
    on_cpu = plan.order.device.type == "cpu"
    visited = 0.0
    for lists in plan.lists:
        tiles = lists.counts.double()
        if on_cpu and lists.partial is not None:
            tiles = tiles + PARTIAL_FACTOR * (lists.partial & lists.live).sum(-1)
        visited += float(tiles.sum(-1).mean()) * lists.tile
    cost = visited * plan.block_q / plan.tokens**2
    if on_cpu and plan.tokens > MASK_TOKENS:  # the break-even of short sequences was measured with small tiles
        cost *= (1 + GATHER_ROWS / plan.block_q) / (1 + GATHER_ROWS / USUAL_TILE)
    return cost


def break_even(tokens: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Cost of a plan above which dense attention without a mask is faster than tiles, as measured on CPUs.

    AMX speeds up dense attention more than tiles, most of all in bf16.
    """
    if device == "cpu" and has_amx():
        if dtype == torch.bfloat16:
            return max(0.0, 0.44 - 220 / tokens)
        return min(0.7, 0.38 + 0.07 * math.log2(max(tokens, 512) / 512))
    return 0.5 - 30 / tokens if tokens <= MASK_TOKENS else 0.75


def break_even_masked(tokens: int, dtype: torch.dtype) -> float:
    """Cost above which dense attention with a plan's mask is faster than tiles, for up to `MASK_TOKENS`.

    As measured on CPUs: a mask slows dense attention by a tenth, with AMX and bf16 by a third; short lists cost more.
    """
    return 0.55 - 200 / tokens if has_amx() and dtype == torch.bfloat16 else 0.6 - 30 / tokens


def why_dense(plan: Plan, query: Tensor, key: Tensor, value: Tensor, return_lse: bool) -> str | None:
    """Why `dense_attention` gives the plan's result faster; None if it does not."""
    if not plan.masks_only or _lse_with_gradient(query, key, value, return_lse):
        return None
    on_cpu = query.device.type == "cpu" and flash_cpu() is not None
    if plan.full and (on_cpu or not return_lse):
        return "the plan keeps every key"
    if on_cpu and plan.tokens <= MASK_TOKENS and plan_cost(plan) > break_even_masked(plan.tokens, query.dtype):
        return f"the plan costs {plan_cost(plan):.2f} of dense attention over {plan.tokens} tokens"
    return None


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor | None]:
    """What the plan computes, by one dense call: out `(B, S, H, D)`, and on a CPU lse `(B, H, S)`."""
    groups = query.shape[2] != key.shape[2]
    query, key, value = (_strided(tensor).transpose(1, 2) for tensor in (query, key, value))
    if query.device.type != "cpu":
        dense = torch.nn.functional.scaled_dot_product_attention
        return dense(query, key, value, scale=scale, enable_gqa=groups).transpose(1, 2), None
    if groups:
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    mask, empty = (None, None) if plan.full else _mask(plan, query.dtype)
    if mask is not None:
        mask = mask.expand(query.shape[0], query.shape[1], -1, -1)
    out, lse = flash_cpu()(query, key, value, attn_mask=mask, scale=scale)
    if empty is not None:  # the operator gives lse 0 where there is no key
        lse = lse.masked_fill(empty, -torch.inf)
    return out.transpose(1, 2), lse


def _strided(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _mask(plan: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The plan's mask as an addend to the scores `(B|1, H|1, S, S)`, and the rows without keys; built once."""

    def make() -> tuple[Tensor, Tensor]:
        seen = plan.to_dense_mask()
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return added, ~seen.any(-1)

    return plan.memo(("dense mask", dtype), make)


def _lse_with_gradient(query: Tensor, key: Tensor, value: Tensor, return_lse: bool) -> bool:
    """Whether lse may need a gradient, which torch's attention does not give."""
    return return_lse and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
