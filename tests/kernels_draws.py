"""Randomly drawn plans and inputs, the inputs as hypothesis gives them reduced to one seed."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from diffattn import Plan, TileList

POOLS = [(1,), (2,), (1, 4), (1, 2, 8), (1, 8, 32)]


@st.composite
def plans(draw, pools=None) -> Plan:
    """Any order, levels, ragged lists with empty rows, virtual rows and key masks; at most some 100 tokens."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens, block_q = draw(st.integers(1, 90)), draw(st.sampled_from([16, 32]))
    batch, heads = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
    pools = draw(st.sampled_from(POOLS)) if pools is None else pools
    multiple = max(block_q, *pools)
    rows = -(-(tokens + draw(st.integers(0, 40))) // multiple) * multiple
    order = torch.stack([_order(tokens, rows, generator) for _ in range(heads)])[None]
    q_rows = _virtual(order, tokens, block_q, generator) if draw(st.booleans()) else None
    tiles = (order if q_rows is None else q_rows).shape[-1] // block_q
    kept = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    lists = []
    for pool in pools:
        tile = draw(st.sampled_from([16, 32] if pool == 1 else [1, 4, 16]))
        count = -(-rows // (pool * tile))
        mask = torch.rand(batch, heads, tiles, count, generator=generator) < kept
        lists.append(TileList.from_mask(mask, tile, pool))
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    plan = Plan(tokens, order.to(dtype), tuple(lists), block_q, None if q_rows is None else q_rows.to(dtype))
    if draw(st.booleans()):
        plan = plan.with_key_mask(torch.rand(2, tokens, generator=generator) < 0.8)
    return plan


@st.composite
def inputs(draw, plan: Plan, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query `(2, S, H, D)`, key and value `(2, S, Hkv, D)`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heads, dim = 2 * draw(st.integers(1, 1)), draw(st.sampled_from([8, 16, 18, 40]))
    kv_heads = draw(st.sampled_from([heads, 1]))
    shapes = [(2, plan.tokens, count, dim) for count in (heads, kv_heads, kv_heads)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def _order(tokens: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    order = torch.full((rows,), -1)
    places = torch.randperm(rows, generator=generator)[:tokens]
    order[places] = torch.randperm(tokens, generator=generator)
    return order


def _virtual(order: torch.Tensor, tokens: int, block_q: int, generator: torch.Generator) -> torch.Tensor:
    again = torch.randint(-1, tokens, (*order.shape[:2], 2 * block_q), generator=generator)
    return torch.cat([order[..., : order.shape[-1] // block_q * block_q], again], dim=-1)
