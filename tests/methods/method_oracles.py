"""Dense float64 oracles of the methods, from the formulas of their papers, sharing nothing with the planners."""

from functools import lru_cache

import torch

from diffattn import TokenGrid
from diffattn.analysis.synthetic import structured_qkv

GRIDS = [
    TokenGrid(5, 9, 10),
    TokenGrid(5, 9, 10, text=7, text_first=True),
    TokenGrid(5, 9, 10, text=20),
    TokenGrid(6, 12, 20),
    TokenGrid(6, 12, 20, text=33, text_first=True),
]
LARGE = [TokenGrid(13, 30, 45), TokenGrid(13, 30, 45, text=9)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(grid, dtype=torch.float32):
    """Structured query, key and value (2, S, H, 16), with fewer heads on larger grids."""
    heads = 2 if grid.video_tokens < 1000 else 1
    return tuple(x.to(dtype) for x in structured_qkv(grid, heads=heads, dim=16, batch=2))


@lru_cache(maxsize=2)
def large_inputs(grid):
    """Structured query, key and value (2, S, 1, 16), and some tokens, text among them, to be checked at."""
    tokens = torch.cat((torch.arange(3, grid.video_tokens, 397), torch.arange(grid.video_tokens, grid.tokens, 4)))
    return structured_qkv(grid, heads=1, dim=16, batch=2), tokens


@lru_cache(maxsize=1)
def coordinates(grid):
    """(t, h, w) of every video token, in raster order."""
    return [(t, h, w) for t in range(grid.frames) for h in range(grid.height) for w in range(grid.width)]


def rows_of_tokens(grid, block, key=None):
    """(S,) row of every token: video sorted by `key`, then text, each filled up to whole blocks."""
    at = coordinates(grid)
    ranked = sorted(range(len(at)), key=lambda token: key(*at[token]) if key else token)
    row = torch.empty(grid.tokens, dtype=torch.int64)
    for position, token in enumerate(ranked):
        row[grid.video_start + token] = position
    text = -(-len(at) // block) * block
    row[grid.text_start : grid.text_start + grid.text] = torch.arange(text, text + grid.text)
    return row


def nested(t, h, w):
    """Tiles of 4x4x8, in them cubes of 2x2x2, in them raster order."""
    return (t // 4, h // 4, w // 8, t % 4 // 2, h % 4 // 2, w % 8 // 2, t % 2, h % 2, w % 2)


def means(x, group, groups):
    """(B, S, H, D) averaged by group: (B, H, groups, D) float64 and counts (groups,)."""
    sums = x.new_zeros(x.shape[0], groups, *x.shape[2:], dtype=torch.float64).index_add_(1, group, x.double())
    counts = torch.bincount(group, minlength=groups).double()
    return (sums / counts.clamp(min=1)[:, None, None]).transpose(1, 2), counts


def block_mass(query, key, row, block_q, block_k):
    """Mass between blocks from means of some rows: softmax(s q k + ln n), summed over keys, averaged over queries."""
    total = int(row.max()) // max(block_q, block_k) * max(block_q, block_k) + max(block_q, block_k)
    size_q, size_k = ({16: 4, 32: 4, 64: 8, 128: 16}[block] for block in (block_q, block_k))
    q, n_q = means(query, row // size_q, total // size_q)
    k, n_k = means(key, row // size_k, total // size_k)
    probs = (query.shape[-1] ** -0.5 * q @ k.mT + n_k.log()).softmax(-1)
    probs = probs.unflatten(-1, (-1, block_k // size_k)).sum(-1) * n_q[:, None]
    per_block = n_q.view(-1, block_q // size_q).sum(-1).clamp(min=1)
    return probs.unflatten(-2, (-1, block_q // size_q)).sum(-2) / per_block[:, None]


def attend_levels(query, key, value, row, block_q, block_k, level, pools, tokens, exact=True):
    """Attention of `tokens` where block J is seen at pool `level[I, J]` (0: not at all): (B, H, n, D) float64.

    With `exact=False` the pooled operands and the probabilities are rounded to the dtype of query, as a kernel does.
    """
    dtype = torch.float64 if exact else query.dtype
    wide = torch.float64 if exact else torch.float32
    total = level.shape[-1] * block_k
    q = query[:, tokens].transpose(1, 2).to(dtype).to(wide)
    logits, values = [], []
    for pool in pools:
        k, n = means(key, row // pool, total // pool)
        v, _ = means(value, row // pool, total // pool)
        owner = torch.arange(total // pool) * pool // block_k
        seen = level[:, :, row[tokens] // block_q][..., owner] == pool
        scores = query.shape[-1] ** -0.5 * q @ k.to(dtype).to(wide).mT + n.log().to(wide)
        logits.append(scores.masked_fill(~seen, -torch.inf))
        values.append(v.to(dtype).to(wide))
    probs = torch.cat(logits, -1).softmax(-1).to(dtype).to(wide)
    return (probs @ torch.cat(values, -2)).to(dtype).double()


def attend_mask(query, key, value, mask, exact=True):
    """Masked softmax attention, mask (B, H, n, S) or broadcastable: (B, H, n, D) float64."""
    dtype = torch.float64 if exact else query.dtype
    wide = torch.float64 if exact else torch.float32
    q, k, v = (x.transpose(1, 2).to(dtype).to(wide) for x in (query, key, value))
    probs = (q.shape[-1] ** -0.5 * q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1)
    return (probs.to(dtype).to(wide) @ v).to(dtype).double()


def assert_close(out, exact, rounded):
    """Out is as near to the float64 oracle as twice the same formula rounded where a kernel rounds."""
    error, allowed = (out.double() - exact).abs().max(), (rounded - exact).abs().max()
    assert allowed < 0.05 * exact.abs().max()
    unit = torch.finfo(out.dtype).eps * exact.abs().max()
    assert error <= 2 * allowed + 2 * unit, (error, allowed)


def levels_of(plan):
    """(B, H, NQ, NK) pool at which a query tile sees a key block, 0 for none; no block may be seen at two."""
    masks = [lists.to_mask(plan.order.shape[-1] // (lists.tile * lists.pool)) for lists in plan.lists]
    assert sum(mask.int() for mask in masks).max() == 1
    return sum(mask.long() * lists.pool for mask, lists in zip(masks, plan.lists))


def golden_inputs():
    """The deterministic q, k, v `(1, 64, 1, 16)` float32 that the golden values are of."""

    def make(a, b, c):
        n, d = torch.arange(64, dtype=torch.float64)[:, None], torch.arange(16, dtype=torch.float64)
        return (torch.sin(a * n + b * d) + 0.5 * torch.cos(c * n * (d + 1) / 16)).float()

    q, k, v = 1.5 * make(0.11, 0.7, 0.05), 1.5 * make(0.11, 0.7, 0.07), make(0.23, 0.3, 0.02)
    return tuple(x[None, :, None] for x in (q, k, v))
