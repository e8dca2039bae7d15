"""Attention between tokens without gradients: the kernel reads queries and writes outputs where the tokens are."""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan.plan import Plan
from ..rows import build_pyramid, scatter_rows, tile_means
from .common import strided
from .forward import launch_forward
from .merge import merge_rows
from .pool import can_pool, pool_rows


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """What `attend_rows` computes with the Triton kernel, without copies of query and out in the order of the plan.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`, without a graph.
    """
    plan = plan.unpacked
    if scale < 0:  # the kernel takes the row maximum before scaling
        query, scale = -query, -scale
    if plan.order.shape[1] > 1 and key.shape[2] < query.shape[2]:  # every query head has KV rows of its own
        key, value = (tensor.repeat_interleave(query.shape[2] // key.shape[2], 2) for tensor in (key, value))
    make_rows = pool_rows if can_pool(plan) and not _as_they_are(plan) else build_pyramid
    tokens, rows = query.transpose(1, 2), (make_rows(key, plan), make_rows(value, plan))
    inputs = (*strided(tokens, *rows),)
    if plan.q_rows is None and plan.post is None:
        plan.row_of_token  # noqa: B018  raises if a token is missing, which would not be written
        out, lse = _empty(query, query.shape[1])
        launch_forward(*inputs, out, lse, plan, scale, gather=plan.order, scatter=True)
        return out.transpose(1, 2), lse
    row_out, row_lse = _empty(query, plan.query_shape[-1])
    launch_forward(*inputs, row_out, row_lse, plan, scale, gather=plan.query_rows)
    if plan.post is not None:
        row_out = plan.post(row_out, tile_means(value, plan, plan.post.tile))
        out, lse = scatter_rows(row_out, row_lse, plan)
        return out, lse
    out, lse = _empty(query, query.shape[1])
    merge_rows(row_out, row_lse, plan.query_rows, out, lse)
    return out.transpose(1, 2), lse


def _as_they_are(plan: Plan) -> bool:
    """Whether tokens are the KV rows without any change."""
    (first, *others) = plan.lists
    whole = plan.order.shape[-1] == plan.tokens == plan.level_rows(first)
    return not others and first.pool == 1 and whole and plan.in_order


def _empty(query: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Uninitialised out `(B, H, rows, D)`, a view of `(B, rows, H, D)`, and lse `(B, H, rows)`."""
    batch, _, heads, dim = query.shape
    out = query.new_empty(batch, rows, heads, dim).transpose(1, 2)
    return out, torch.empty(batch, heads, rows, dtype=torch.float32, device=query.device)
