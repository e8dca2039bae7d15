"""The oracle: masked softmax in float64, quadratic in memory and written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from .plan import Plan


def reference_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """Exact attention over the plan, in float64.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`, Hkv a divisor of H.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`, both float64.
    """
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
    keys, values, bias = [], [], []
    for rows in _pick(plan.order, b, h).split(lists.pool):
        tokens = rows[rows >= 0]
        if plan.key_mask is not None:
            tokens = tokens[plan.key_mask[min(b, plan.key_mask.shape[0] - 1), tokens]]
        some = tokens if len(tokens) else rows[:1].clamp(min=0)
        keys.append(key[some].double().mean(0))
        values.append(value[some].double().mean(0))
        bias.append(torch.tensor(float(len(tokens)), device=key.device, dtype=torch.float64).log())
    return torch.stack(keys), torch.stack(values), torch.stack(bias)


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
    counts, indices = _pick(lists.counts, b, h), _pick(lists.indices, b, h)
    level_rows = plan.order.shape[-1] // lists.pool
    seen = torch.zeros(plan.tokens, level_rows, dtype=torch.float64, device=indices.device)
    for row, token in enumerate(_pick(plan.query_rows, b, h).tolist()):
        if token >= 0:
            tile = row // plan.block_q
            for position, entry in enumerate(indices[tile, : counts[tile]].tolist()):
                keys = torch.arange(entry * lists.tile, min((entry + 1) * lists.tile, level_rows), device=seen.device)
                if lists.partial is not None and _pick(lists.partial, b, h)[tile, position]:
                    keys = keys[plan.boxes.inside(torch.tensor([row], device=seen.device), keys)[0]]
                seen[token, keys] += 1
    return seen
