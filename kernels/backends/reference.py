"""The oracle: masked softmax in float64, quadratic in memory and written for clarity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan.plan import Plan


def reference_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """Exact attention over the plan, in float64.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`, Hkv a divisor of H.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`, both float64.
    """
    plan = plan.unpacked
    batch, tokens, heads, dim = query.shape
    out, lse = query.new_zeros(batch, tokens, heads, dim, dtype=torch.float64), []
    for b in range(batch):
        for h in range(heads):
            kv_head = h // (heads // key.shape[2])
            logits, values = [], []
            for lists in plan.lists:
                keys, vals, bias = _level(key[b, :, kv_head], value[b, :, kv_head], plan, lists, b, h)
                seen = _visits(plan, lists, b, h)  # (S, level rows), how often
                logits.append(scale * query[b, :, h].double() @ keys.T + bias + seen.log())
                values.append(vals)
            scores = torch.cat(logits, dim=-1)
            total = torch.logsumexp(scores, dim=-1)
            probs = (scores - total.where(total > -torch.inf, 0)[:, None]).exp()
            out[b, :, h] = probs @ torch.cat(values)
            if plan.post is not None:
                _affine(out[b, :, h], value[b, :, kv_head], plan, b, h)
            lse.append(total)
    return out, torch.stack(lse).view(batch, heads, tokens)


def _pick(tensor: Tensor, b: int, h: int) -> Tensor:
    return tensor[min(b, tensor.shape[0] - 1), min(h, tensor.shape[1] - 1)]


def _level(key: Tensor, value: Tensor, plan: Plan, lists, b: int, h: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key and value `(R / pool, D)` of the valid tokens of every pool, and ln of their number."""
    rows = _pick(plan.order, b, h).view(-1, lists.pool)
    valid = rows >= 0
    if plan.key_mask is not None:
        valid &= plan.key_mask[min(b, plan.key_mask.shape[0] - 1)][rows.clamp(min=0)]
    count = valid.sum(-1).double()
    share = valid.double() / count.clamp(min=1)[:, None]  # (R / pool, pool)
    keys, values = ((share[..., None] * source.double()[rows.clamp(min=0)]).sum(1) for source in (key, value))
    return keys, values, count.log()


def _affine(out: Tensor, value: Tensor, plan: Plan, b: int, h: int) -> None:
    scale, weights = _pick(plan.post.scale, b, h).double(), _pick(plan.post.weights, b, h).double()
    order, valid = _pick(plan.order, b, h), _pick(plan.valid_keys, b, h)
    for tile in range(len(scale)):
        rest = torch.zeros_like(out[0])
        for source, rows in enumerate(order.split(plan.post.tile)):
            tokens = rows[valid.split(plan.post.tile)[source]]
            if len(tokens):
                rest += weights[tile, source] * value[tokens].double().mean(0)
        tokens = order[tile * plan.block_q : (tile + 1) * plan.block_q]
        tokens = tokens[tokens >= 0]
        out[tokens] = scale[tile] * out[tokens] + rest


def _visits(plan: Plan, lists, b: int, h: int) -> Tensor:
    """How often the query rows of each token see each KV row, `(S, R / pool)`."""
    counts, indices = _pick(lists.counts, b, h), _pick(lists.indices, b, h)
    query_rows = _pick(plan.query_rows, b, h)
    level_rows = plan.order.shape[-1] // lists.pool
    seen = torch.zeros(plan.tokens, level_rows, dtype=torch.float64, device=indices.device)
    for tile, tokens in enumerate(query_rows.split(plan.block_q)):
        rows = tile * plan.block_q + (tokens >= 0).nonzero()[:, 0]
        by_row = torch.zeros(len(rows), level_rows, dtype=torch.float64, device=indices.device)
        for position, entry in enumerate(indices[tile, : counts[tile]].tolist()):
            keys = torch.arange(entry * lists.tile, min((entry + 1) * lists.tile, level_rows), device=seen.device)
            if lists.partial is not None and _pick(lists.partial, b, h)[tile, position]:
                by_row[:, keys] += plan.boxes.inside(rows, keys).double()
            else:
                by_row[:, keys] += 1
        seen.index_add_(0, tokens[tokens >= 0], by_row)
    return seen
