"""Between tokens `(B, S, H, D)` and the rows of a plan `(B, H, R, D)`: gather, pool, merge and scatter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..plan.plan import Plan


def attend_rows(
    kernel: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor]:
    """`kernel` between the gather of tokens into rows and the scatter of rows into tokens.

    Args:
        kernel (`Callable`): `kernel(query, key, value, plan, scale) -> (out, lse)` on rows `(B, H, R, D)`.
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`.
    """
    plan = plan.unpacked
    if plan.order.shape[1] > 1 and key.shape[2] < query.shape[2]:  # every query head has KV rows of its own
        key, value = (tensor.repeat_interleave(query.shape[2] // key.shape[2], 2) for tensor in (key, value))
    rows = gather_rows(query, plan.query_rows, plan)
    out, lse = kernel(rows, build_pyramid(key, plan), build_pyramid(value, plan), plan, scale)
    if plan.post is not None:
        out = plan.post(out, tile_means(value, plan, plan.post.tile))
    return scatter_rows(out, lse, plan)


def gather_rows(tokens: Tensor, rows: Tensor, plan: Plan) -> Tensor:
    """Tokens `(B, S, H, D)` in the order of `rows` `(B|1, H|1, R)`, padding rows zero: `(B, H, R, D)`."""
    tokens = tokens.transpose(1, 2)
    if rows is plan.order and plan.in_order:
        return _pad_rows(tokens, rows.shape[-1])
    if rows.shape[:2] == (1, 1):
        gathered = tokens.index_select(2, rows[0, 0].clamp(min=0))
    else:
        index = rows.clamp(min=0).long()[..., None].expand(*tokens.shape[:2], -1, tokens.shape[-1])
        gathered = tokens.gather(2, index)
    return gathered.masked_fill_((rows < 0)[..., None], 0)


def build_pyramid(tokens: Tensor, plan: Plan) -> Tensor:
    """Mean-pooled KV rows of every level, one after the other: `(B, S, H, D)` to `(B, H, Rkv, D)`.

    A mean runs over the valid tokens of a pool only, in float32 at least (PSA, arXiv 2512.04025, Section 3.2).
    """
    rows = gather_rows(tokens, plan.order, plan)
    if len(plan.lists) == 1 and plan.lists[0].pool == 1:
        return _pad_rows(rows, plan.level_rows(plan.lists[0]))
    valid = rows * plan.valid_keys[..., None].to(rows.dtype)
    levels, start = [], 0
    for lists in plan.lists:
        count = plan.level_rows(lists)
        if lists.pool == 1:
            pooled = rows
        else:
            weight = plan.kv_counts[..., start : start + rows.shape[2] // lists.pool, None].clamp(min=1)
            sums = valid.unflatten(2, (-1, lists.pool)).sum(3, dtype=torch.promote_types(rows.dtype, torch.float32))
            pooled = (sums / weight).to(rows.dtype)
        levels.append(_pad_rows(pooled, count))
        start += count
    return torch.cat(levels, dim=2)


def tile_means(tokens: Tensor, plan: Plan, tile: int) -> Tensor:
    """Mean valid token of every `tile` rows, 0 where there is none: `(B, S, H, D)` to `(B, H, R / tile, D)`."""
    rows = gather_rows(tokens, plan.order, plan) * plan.valid_keys[..., None].to(tokens.dtype)
    sums = rows.unflatten(2, (-1, tile)).sum(3, dtype=torch.promote_types(rows.dtype, torch.float32))
    return sums / plan.valid_keys.unflatten(-1, (-1, tile)).sum(-1).clamp(min=1)[..., None]


def scatter_rows(out: Tensor, lse: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Rows back to tokens: out `(B, H, Rq, D)` to `(B, S, H, D)`, lse `(B, H, Rq)` to `(B, H, S)`."""
    if plan.q_rows is not None:
        out, lse = _merge_rows(out, lse, plan)
    elif plan.in_order:
        out, lse = out[:, :, : plan.tokens], lse[:, :, : plan.tokens]
    elif plan.row_of_token.shape[:2] == (1, 1):
        row = plan.row_of_token[0, 0]
        out, lse = out.index_select(2, row), lse.index_select(2, row)
    else:
        row = plan.row_of_token.long().expand(*lse.shape[:2], -1)
        out, lse = out.gather(2, row[..., None].expand(-1, -1, -1, out.shape[-1])), lse.gather(2, row)
    return out.transpose(1, 2), lse


def _merge_rows(out: Tensor, lse: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Merge the rows of each token: o = sum exp(lse_r - lse) o_r, lse = logsumexp lse_r."""
    rows = plan.q_rows.long().expand(*lse.shape[:2], -1)
    slot = rows.where(rows >= 0, plan.tokens)
    peak = lse.new_full((*lse.shape[:2], plan.tokens + 1), -torch.inf)
    peak = peak.scatter_reduce(-1, slot, lse.detach(), "amax")
    peak = peak.where(peak > -torch.inf, 0)
    weight = (lse - peak.gather(-1, slot)).exp()
    total = torch.zeros_like(peak).scatter_add(-1, slot, weight)
    spread = slot[..., None].expand_as(out)
    merged = out.new_zeros(*peak.shape, out.shape[-1], dtype=lse.dtype)
    merged = merged.scatter_add(2, spread, weight[..., None] * out.to(lse.dtype))
    merged = merged / total.where(total > 0, 1)[..., None]
    # ln 0 has no gradient: tokens without any key are replaced before the logarithm, not after
    seen = total > 0
    merged_lse = (peak + total.where(seen, 1).log()).where(seen, -torch.inf)
    return merged[:, :, : plan.tokens].to(out.dtype), merged_lse[..., : plan.tokens]


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    missing = count - rows.shape[2]
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
