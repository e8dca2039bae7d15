"""Block-sparse attention in plain torch: the CPU path, and the fallback where Triton cannot run.

Query tiles are sorted by how many keys they visit, taken in chunks whose gathered keys and values fit the cache, and
each chunk is one batched attention call. Nothing is padded to the longest list and nothing is ever S x S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .plan import Plan

CHUNK_BYTES = 2 << 20  # gathered keys and values per thread: flat optimum between 0.5 and 8 MB on the CPUs measured


def forward(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of row tensors, differentiable in out and lse.

    Args:
        query (`torch.Tensor`): `(B, H, Rq, D)`.
        key, value (`torch.Tensor`): `(B, Hkv, Rkv, D)`, the levels of the plan one after the other.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, H, Rq, D)` and lse `(B, H, Rq)` in float32 or wider.
    """
    return _TileAttention.apply(query, key, value, plan, scale)


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, plan, scale):
        query, key, value = (rows.contiguous() for rows in (query, key, value))
        out = torch.zeros_like(query)
        lse = torch.full(query.shape[:3], -torch.inf, dtype=_wide(query.dtype), device=query.device)
        work = worklist(plan, query, key)
        tiles, granules, bias = _views(query, key, value, plan, work)
        out_tiles, lse_tiles = out.view_as(tiles), lse.view(tiles.shape[:2])
        for rows, visited in work.chunks:
            keys, values = (_gather(source, visited) for source in granules)
            chunk_out, chunk_lse = _softmax_attention(tiles[rows], keys, values, _gather(bias, visited), scale)
            out_tiles.index_copy_(0, rows, chunk_out)
            lse_tiles.index_copy_(0, rows, chunk_lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        query, key, value, out, lse = ctx.saved_tensors
        work = worklist(ctx.plan, query, key)
        tiles, (keys, values), bias = _views(query, key, value, ctx.plan, work)
        grad_out, out = grad_out.contiguous().view_as(tiles), out.view_as(tiles)
        lse, grad_lse = lse.view(tiles.shape[:2]), grad_lse.contiguous().view(tiles.shape[:2])
        grads = torch.zeros_like(tiles), torch.zeros_like(keys), torch.zeros_like(values)
        for rows, visited in work.chunks:
            # dS = P * (dP - (rowsum(dO * O) - dLSE))
            k, v, logw = (_gather(source, visited) for source in (keys, values, bias))
            total = lse[rows].where(lse[rows] > -torch.inf, 0)[..., None]
            probs = (ctx.scale * tiles[rows] @ k.mT + _add(logw) - total).exp().to(k.dtype)
            delta = (grad_out[rows] * out[rows]).sum(-1, dtype=lse.dtype) - grad_lse[rows]
            scores = (probs * (grad_out[rows] @ v.mT - delta[..., None])).to(k.dtype) * ctx.scale
            grads[0].index_copy_(0, rows, scores @ k)
            for grad, part in ((grads[1], scores.mT @ tiles[rows]), (grads[2], probs.mT @ grad_out[rows])):
                grad.index_add_(0, visited.flatten(), part.reshape(-1, *grad.shape[1:]))
        return grads[0].view_as(query), grads[1].view_as(key), grads[2].view_as(value), None, None


class Worklist:
    """Chunks of `(query tiles (n,), KV granules (n, L))`, every tile of a chunk visiting the same number of granules.

    A granule is the largest number of rows that divides every tile size of the plan.
    """

    def __init__(self, plan: Plan, query: Tensor, key: Tensor) -> None:
        self.granule = math.gcd(*(lists.tile for lists in plan.lists))
        tiles, granules = _entries(plan, query.shape[:2], key.shape[1], key.shape[2], self.granule)
        by_tile = torch.argsort(tiles, stable=True)
        granules = granules[by_tile]
        lengths = torch.bincount(tiles, minlength=query.shape[0] * query.shape[1] * query.shape[2] // plan.block_q)
        first = lengths.cumsum(0) - lengths
        row_bytes = 2 * self.granule * key.shape[-1] * key.element_size()
        budget = CHUNK_BYTES * torch.get_num_threads()
        self.chunks = []
        for length in lengths.unique().tolist():
            if length:
                rows = (lengths == length).nonzero().flatten()
                visited = granules[first[rows, None] + torch.arange(length, device=rows.device)]
                size = max(1, budget // (row_bytes * length))
                self.chunks += zip(rows.split(size), visited.split(size))


def worklist(plan: Plan, query: Tensor, key: Tensor) -> Worklist:
    """The plan's worklist for these shapes, built once."""
    at = (tuple(query.shape), tuple(key.shape), key.element_size(), torch.get_num_threads())
    if at not in plan._cache:
        plan._cache[at] = Worklist(plan, query, key)
    return plan._cache[at]


def _entries(plan: Plan, batch_heads, kv_heads: int, kv_rows: int, granule: int) -> tuple[Tensor, Tensor]:
    """Flat (query tile, granule) pairs of all lists over `B * H * NQ` tiles and `B * Hkv * Rkv / granule` granules."""
    batch, heads = batch_heads
    device = plan.order.device
    head = torch.arange(batch * heads, device=device)
    kv_head = head // heads * kv_heads + head % heads // (heads // kv_heads)
    tiles, granules = [], []
    for lists in plan.lists:
        counts = lists.counts.expand(batch, heads, -1).flatten(0, 1)
        indices = lists.indices.expand(batch, heads, -1, -1).flatten(0, 1).long()
        first = indices * (lists.tile // granule) + plan.level_start(lists) // granule
        first = first + (kv_head * (kv_rows // granule))[:, None, None]
        live = torch.arange(indices.shape[-1], device=device) < counts[..., None]
        tile = torch.arange(live.shape[0] * live.shape[1], device=device).view(*live.shape[:2], 1).expand_as(live)
        run = torch.arange(lists.tile // granule, device=device)
        granules.append((first[live][:, None] + run).flatten())
        tiles.append(tile[live].repeat_interleave(len(run)))
    return torch.cat(tiles), torch.cat(granules)


def _views(query: Tensor, key: Tensor, value: Tensor, plan: Plan, work: Worklist):
    """Query tiles `(B H NQ, BQ, D)`, key and value granules `(B Hkv NG, G, D)` and log-weights `(B Hkv NG, G)`."""
    dim = query.shape[-1]
    bias = None
    if bool((plan.kv_logw != 0).any()):
        bias = plan.kv_logw.expand(*key.shape[:2], -1).to(query.dtype).reshape(-1, work.granule)
    keys, values = (rows.view(-1, work.granule, dim) for rows in (key, value))
    return query.view(-1, plan.block_q, dim), (keys, values), bias


def _gather(granules: Tensor | None, visited: Tensor) -> Tensor | None:
    if granules is None:
        return None
    picked = granules.index_select(0, visited.flatten())
    return picked.view(len(visited), visited.shape[1] * granules.shape[1], *granules.shape[2:])


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, logw: Tensor | None, scale: float):
    """`(N, BQ, D)` against `(N, L, D)` with log-weights `(N, L)`; out and lse, rows without any key 0 and -inf."""
    if query.device.type != "cpu":
        scores = scale * query @ key.mT + _add(logw)
        lse = torch.logsumexp(scores.to(_wide(scores.dtype)), dim=-1)
        probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
        return probs.to(value.dtype) @ value, lse
    mask = None if logw is None else logw[:, None, None]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[:, None], key[:, None], value[:, None], attn_mask=mask, scale=scale
    )
    out, lse = out[:, 0], lse[:, 0]
    if logw is not None:
        empty = (logw == -torch.inf).all(-1)[:, None]
        out, lse = out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -torch.inf)
    return out, lse


def _add(logw: Tensor | None) -> Tensor | float:
    return 0.0 if logw is None else logw[:, None]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
