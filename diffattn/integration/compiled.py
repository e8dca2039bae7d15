"""The attention of one layer as one opaque operator, for graphs that torch.compile makes.

A graph must be the same for every layer, step and size. So tensors say which layer, grid and step it is: Dynamo
makes a constant, and a new graph, of every int that differs. What Python does for a call (decision, plan, counts)
happens inside the operator.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.handles import object_of
from ..kernels.opaque import opaque_operator
from .attention_inputs import AttentionInputs
from .block_masks import BlockLists
from .decision import Sparse, decide_at
from .execute import run_decision
from .run_state import Location


def _shape(query: Tensor, *others: Any) -> Tensor:
    return query.new_empty(query.shape)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    processor: Tensor,
    location: Tensor,
    ranks: int,
    scale: float | None,
    count: bool,
) -> Tensor:
    asking = object_of(processor)
    session, layer = asking.handler, asking.layer
    inputs, at = AttentionInputs(query, key, value, scale=scale), Location.from_tensor(location)
    decision = decide_at(session.plans, layer, asking.adapter, inputs, key_mask, at, ranks, rerun=not count)
    if count:
        session.note(layer, decision)
    if isinstance(decision, Sparse):
        return run_decision(decision, session.state, session.impl)
    return _dense(query, key, value, key_mask, scale)


def _dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor:
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None]
    groups = query.shape[2] != key.shape[2]
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=mask, scale=scale, enable_gqa=groups
    )
    return out.transpose(1, 2)


@opaque_operator("diffattn::attention", fake=_shape, rerun=partial(_run, count=False))
def compiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    processor: Tensor,
    location: Tensor,
    ranks: int,
    scale: float | None,
) -> Tensor:
    """query, key, value `(B, S, H, D)`, key mask `(B, S)`, handle of a processor, `location` as in [`RunState`]."""
    return _run(query, key, value, key_mask, processor, location, ranks, scale, count=True)


def _run_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    indices: Tensor,
    block_q: int,
    block_k: int,
    processor: Tensor,
    scale: float | None,
    count: bool,
) -> Tensor:
    asking = object_of(processor)
    plan = BlockLists(counts, indices, block_q, block_k).plan(query.shape[1])
    decision = Sparse(plan, None, AttentionInputs(query, key, value, scale=scale))
    if count:
        asking.handler.note(asking.layer, decision)
    return run_decision(decision, asking.handler.state, asking.handler.impl)


@opaque_operator("diffattn::block_attention", fake=_shape, rerun=partial(_run_blocks, count=False))
def compiled_block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    indices: Tensor,
    block_q: int,
    block_k: int,
    processor: Tensor,
    scale: float | None,
) -> Tensor:
    """query, key, value `(B, S, H, D)`, the fields of [`BlockLists`], handle of a processor."""
    return _run_blocks(query, key, value, counts, indices, block_q, block_k, processor, scale, count=True)
