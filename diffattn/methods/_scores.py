"""Estimates of where the attention mass lies, deterministic and in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PARTS = 8  # of a block, each scored by its mean: at blocks of 128 as accurate as sampling a quarter of the rows
LEAST_PART = 4  # rows; small blocks come with short sequences, where scores cost little
# Bytes held at once: what fits the caches of a CPU, and what keeps a GPU busy.
SCORE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # logits
PIECE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # gathered rows


def pooled(tokens: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The mean of every `size` rows, over the rows that hold a token; 0 where it is not finite.

    Args:
        tokens (`torch.Tensor`): `(B, S, H, D)`.
        order (`torch.Tensor`): `(R,)` int64 or int32, token of each row, -1 for padding; R a multiple of `size`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: means `(B, H, R / size, D)` float32 and counts `(R / size,)` float32.
    """
    means = torch.cat([_mean(*part) for part in _pieces(tokens, order, size)], 1)
    return means.transpose(1, 2), counts_of(order, size)


def means_and_deviations(tokens: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The means of [`pooled`] and the mean absolute deviations from them, each `(B, H, R / size, D)` float32."""
    means, deviations = [], []
    for rows, live in _pieces(tokens, order, size):
        means.append(_mean(rows, live))
        away = _without_padding((rows - means[-1][:, :, None]).abs_(), live)
        deviations.append(_mean(away, live))
    return tuple(torch.cat(parts, 1).transpose(1, 2) for parts in (means, deviations))


def counts_of(order: Tensor, size: int) -> Tensor:
    """`(R / size,)` float32, how many of every `size` rows of `order` hold a token."""
    return (order >= 0).view(-1, size).sum(-1).float()


def _pieces(tokens: Tensor, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows `(B, n, size, H, D)` of n pools at a time, padding 0, and whether they hold a token `(n, size)`."""
    row_bytes = tokens[:, :1].numel() * tokens.element_size()
    pools = max(1, bytes_of(PIECE_BYTES, tokens) // (row_bytes * size))
    (tokens,) = each_contiguous((tokens,), len(order) > pools * size)
    for part in order.split(pools * size):
        live = (part >= 0).view(-1, size)
        rows = tokens.index_select(1, part.clamp(min=0)).unflatten(1, live.shape)
        yield _without_padding(rows, live), live


def each_contiguous(tensors: tuple[Tensor, ...], in_pieces: bool) -> tuple[Tensor, ...]:
    """On a CPU, `index_select` copies a tensor that is not contiguous as a whole, again for each piece of it."""
    return tuple(tensor.contiguous() if in_pieces and tensor.device.type == "cpu" else tensor for tensor in tensors)


def _without_padding(rows: Tensor, live: Tensor) -> Tensor:
    """Rows `(B, n, size, H, D)` with 0 where they hold no token, in place."""
    whole = live.device.type == "cpu" and bool(live.all())  # on a GPU asking costs more than filling
    return rows if whole else rows.masked_fill_(~live[..., None, None], 0)


def bytes_of(limits: dict[str, int], tensor: Tensor) -> int:
    return limits.get(tensor.device.type, limits["cuda"])


def _mean(rows: Tensor, live: Tensor) -> Tensor:
    return finite(rows.sum(2, dtype=torch.float32) / live.sum(-1).clamp(min=1)[:, None, None])


def finite(tensor: Tensor) -> Tensor:
    """In float32, with 0 for NaN and infinity, so that one bad number does not spoil the scores of other tokens."""
    return tensor.float().nan_to_num(0, 0, 0)


def match_heads(key: Tensor, heads: int) -> Tensor:
    """Key heads `(B, Hkv, ...)` repeated to the number of query heads, `(B, heads, ...)`."""
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], 1)


def block_mass(query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int) -> Tensor:
    """Estimated attention mass that blocks of queries give to blocks of keys.

    Every block is cut into parts. A part counts as its mean, with ln(tokens) added to its score.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key (`torch.Tensor`): `(B, S, Hkv, D)`.
        order (`torch.Tensor`): `(R,)`, R a multiple of both blocks.

    Returns:
        `torch.Tensor`: `(B, H, R / block_q, R / block_k)` float32; rows sum to 1, rows without a query to 0.
    """
    parts, weight = _mass_of_parts(query, key, order, block_q, block_k)
    mass = torch.cat([(part * weight).sum(-2) for part in parts])
    return mass.unflatten(0, (query.shape[0], query.shape[2]))


def block_shares(query: Tensor, key: Tensor, order: Tensor, block: int, text_key: Tensor) -> tuple[Tensor, Tensor]:
    """[`block_mass`] with text among the keys, and how much it varies within a block of queries.

    Args:
        text_key (`torch.Tensor`): `(B, text, Hkv, D)` keys that are not in `order`, scored one by one.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean over the parts of each block of queries and mean absolute deviation
        from it, `(B, H, N, N + 1)` float32; the last column is all text.
    """
    parts, weight = _mass_of_parts(query, key, order, block, block, text_key)
    means, deviations = [], []
    for part in parts:
        means.append((part * weight).sum(-2))
        deviations.append((part.sub_(means[-1][..., None, :]).abs_() * weight).sum(-2))
    return tuple(torch.cat(part).unflatten(0, (query.shape[0], query.shape[2])) for part in (means, deviations))


def _mass_of_parts(
    query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int, text_key: Tensor | None = None
) -> tuple[Iterator[Tensor], Tensor]:
    """The mass `(n, NQ, parts, NK)` that parts give to blocks, n heads at a time, text in the last column.

    Also the share of the queries of a block that each part holds, `(NQ, parts, 1)`.
    """
    part_q, part_k = (max(LEAST_PART, block // PARTS) for block in (block_q, block_k))
    q, count_q = pooled(query, order, part_q)
    k, count_k = pooled(key, order, part_k)
    k = match_heads(k, q.shape[1])
    weight = count_q.view(-1, block_q // part_q)
    bias, scale = count_k.log(), query.shape[-1] ** -0.5
    heads = max(1, bytes_of(SCORE_BYTES, query) // (4 * q.shape[-2] * k.shape[-2]))
    tensors = [q, k] if text_key is None else [q, k, match_heads(finite(text_key.transpose(1, 2)), q.shape[1])]

    def mass(q: Tensor, k: Tensor, text_k: Tensor | None = None) -> Tensor:
        logits = torch.baddbmm(bias, q, k.mT, alpha=scale)
        if text_k is None:
            probs = logits.softmax(-1).unflatten(-1, (-1, block_k // part_k)).sum(-1)
        else:
            text = (scale * q @ text_k.mT).logsumexp(-1, keepdim=True)
            probs = torch.cat((logits, text), -1).softmax(-1)
            video = probs[..., :-1].unflatten(-1, (-1, block_k // part_k)).sum(-1)
            probs = torch.cat((video, probs[..., -1:]), -1)
        return probs.unflatten(-2, weight.shape)

    parts = zip(*(tensor.flatten(0, 1).split(heads) for tensor in tensors))
    return (mass(*part) for part in parts), (weight / weight.sum(-1, keepdim=True).clamp(min=1))[..., None]


def sampled_mass(query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int, seed: int) -> Tensor:
    """The importance of PSA (arXiv 2512.04025, Section 3.3): the largest probability among a quarter of the rows.

    As in the released code, probabilities are relative to the largest logit of their row. `seed` alone decides which
    rows are drawn.

    Returns:
        `torch.Tensor`: `(B, H, R / block_q, R / block_k)` float32, rows sum to 1.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shuffled = [torch.randperm(size, generator=generator, device="cpu") for size in (block_q, block_k)]
    drawn = [rows[: max(1, len(rows) // 4)].to(order.device) for rows in shuffled]
    q, valid_q = _sample(query, order, drawn[0], block_q)
    k, valid_k = _sample(key, order, drawn[1], block_k)
    k = match_heads(k, q.shape[1])
    scale = query.shape[-1] ** -0.5

    def mass(q: Tensor, k: Tensor) -> Tensor:
        logits = (scale * q @ k.mT).masked_fill(~valid_k, -torch.inf).unflatten(-1, (-1, len(drawn[1]))).amax(-1)
        probs = (logits - logits.amax(-1, keepdim=True)).exp() * valid_q[:, None]
        return probs.unflatten(-2, (-1, len(drawn[0]))).amax(-2)

    parts = zip(q.flatten(0, 1).split(1), k.flatten(0, 1).split(1))
    peaks = torch.cat([mass(*part) for part in parts]).unflatten(0, q.shape[:2])
    return peaks / peaks.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _sample(tokens: Tensor, order: Tensor, drawn: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The drawn rows of every block `(B, H, N, D)` float32 and whether they hold a token `(N,)`.

    Where a drawn row is padding, the first row of its block replaces it, which holds a token if any row does.
    """
    blocks = order.view(-1, block)
    rows = blocks[:, drawn]
    rows = rows.where(rows >= 0, blocks[:, :1]).flatten()
    return finite(tokens.index_select(1, rows.clamp(min=0)).transpose(1, 2)), rows >= 0
