"""Estimates of where the attention mass lies, deterministic and in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SUBS = 8  # means of a block that scores are taken from: at blocks of 128 as accurate as sampling a quarter of the rows
LEAST_SUB = 4  # rows of such a mean; small blocks come with short sequences, where scores cost little
# Held at once: what stays in the caches of a CPU, and what fills a GPU.
SCORE_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # logits
PIECE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}  # gathered rows


def pooled(tokens: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means of every `size` rows, over the rows that hold a token; 0 where the mean is no finite number.

    Args:
        tokens (`torch.Tensor`): `(B, S, H, D)`.
        order (`torch.Tensor`): `(R,)` int64 or int32, token of each row, -1 for padding; R a multiple of `size`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: means `(B, H, R / size, D)` float32 and counts `(R / size,)` float32.
    """
    means = torch.cat([_mean(*part) for part in _pieces(tokens, order, size)], 1)
    return means.transpose(1, 2), counts_of(order, size)


def spread(tokens: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means as [`pooled`] gives them, and the mean absolute deviations from them, `(B, H, R / size, D)` float32."""
    means, deviations = [], []
    for rows, live in _pieces(tokens, order, size):
        means.append(_mean(rows, live))
        away = (rows - means[-1][:, :, None]).abs_()
        if not bool(live.all()):
            away.masked_fill_(~live[..., None, None], 0)
        deviations.append(_mean(away, live))
    return tuple(torch.cat(parts, 1).transpose(1, 2) for parts in (means, deviations))


def counts_of(order: Tensor, size: int) -> Tensor:
    """`(R / size,)` float32, tokens among every `size` rows of `order`."""
    return (order >= 0).view(-1, size).sum(-1).float()


def _pieces(tokens: Tensor, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows `(B, n, size, H, D)` of some pools after the other, padding 0, and whether they are tokens `(n, size)`."""
    row_bytes = tokens[:, :1].numel() * tokens.element_size()
    pools = max(1, _bytes(PIECE_BYTES, tokens) // (row_bytes * size))
    for part in order.split(pools * size):
        live = (part >= 0).view(-1, size)
        rows = tokens.index_select(1, part.clamp(min=0)).unflatten(1, live.shape)
        if not bool(live.all()):
            rows.masked_fill_(~live[..., None, None], 0)
        yield rows, live


def _bytes(limits: dict[str, int], tensor: Tensor) -> int:
    return limits.get(tensor.device.type, limits["cuda"])


def _mean(rows: Tensor, live: Tensor) -> Tensor:
    return finite(rows.sum(2, dtype=torch.float32) / live.sum(-1).clamp(min=1)[:, None, None])


def finite(tensor: Tensor) -> Tensor:
    """In float32, with 0 for NaN and infinity: one such number would make all scores of its row or column NaN.

    What attention makes of it is the kernel's to say; the plan keeps the density that was asked for.
    """
    return tensor.float().nan_to_num(0, 0, 0)


def match_heads(key: Tensor, heads: int) -> Tensor:
    """Key heads `(B, Hkv, ...)` repeated for their `heads` query heads."""
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], 1)


def block_mass(query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int) -> Tensor:
    """Attention mass between blocks, from a few means of each with the ln of their count (the identity behind IPAR).

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key (`torch.Tensor`): `(B, S, Hkv, D)`.
        order (`torch.Tensor`): `(R,)`, R a multiple of both blocks.

    Returns:
        `torch.Tensor`: `(B, H, R / block_q, R / block_k)` float32; rows sum to 1, rows without a query to 0.
    """
    parts, weight = _parts_mass(query, key, order, block_q, block_k)
    mass = torch.cat([(part * weight).sum(-2) for part in parts])
    return mass.unflatten(0, (query.shape[0], query.shape[2]))


def block_shares(query: Tensor, key: Tensor, order: Tensor, block: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """[`block_mass`] where words are keys too, and how far it differs within a block of queries.

    Args:
        words (`torch.Tensor`): `(B, text, Hkv, D)` keys that are not in `order`, scored one by one.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean over the parts of each block and their mean absolute deviation,
        `(B, H, N, N + 1)` float32, all words together last.
    """
    parts, weight = _parts_mass(query, key, order, block, block, words)
    means, deviations = [], []
    for part in parts:
        means.append((part * weight).sum(-2))
        deviations.append((part.sub_(means[-1][..., None, :]).abs_() * weight).sum(-2))
    return tuple(torch.cat(part).unflatten(0, (query.shape[0], query.shape[2])) for part in (means, deviations))


def _parts_mass(
    query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int, words: Tensor | None = None
) -> tuple[Iterator[Tensor], Tensor]:
    """The mass `(n, NQ, parts, NK)` that parts of blocks give to blocks, some heads after the other, words last.

    Also the share of each part in the queries of its block, `(NQ, parts, 1)`.
    """
    sub_q, sub_k = (max(LEAST_SUB, block // SUBS) for block in (block_q, block_k))
    q, count_q = pooled(query, order, sub_q)
    k, count_k = pooled(key, order, sub_k)
    k = match_heads(k, q.shape[1])
    weight = count_q.view(-1, block_q // sub_q)
    bias, scale = count_k.log(), query.shape[-1] ** -0.5
    heads = max(1, _bytes(SCORE_BYTES, query) // (4 * q.shape[-2] * k.shape[-2]))
    tensors = [q, k] if words is None else [q, k, match_heads(finite(words.transpose(1, 2)), q.shape[1])]

    def mass(q: Tensor, k: Tensor, words: Tensor | None = None) -> Tensor:
        logits = torch.baddbmm(bias, q, k.mT, alpha=scale)
        if words is None:
            probs = logits.softmax(-1).unflatten(-1, (-1, block_k // sub_k)).sum(-1)
        else:
            text = (scale * q @ words.mT).logsumexp(-1, keepdim=True)
            probs = torch.cat((logits, text), -1).softmax(-1)
            video = probs[..., :-1].unflatten(-1, (-1, block_k // sub_k)).sum(-1)
            probs = torch.cat((video, probs[..., -1:]), -1)
        return probs.unflatten(-2, weight.shape)

    parts = zip(*(tensor.flatten(0, 1).split(heads) for tensor in tensors))
    return (mass(*part) for part in parts), (weight / weight.sum(-1, keepdim=True).clamp(min=1))[..., None]


def sampled_mass(query: Tensor, key: Tensor, order: Tensor, block_q: int, block_k: int, seed: int) -> Tensor:
    """The importance of PSA's Section 3.3: the largest probability over a quarter of the rows of each block.

    As in the released code, probabilities are relative to the largest logit of their row. The rows are drawn once
    from `seed`, never from the global generator.

    Returns:
        `torch.Tensor`: `(B, H, R / block_q, R / block_k)` float32, rows sum to 1.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randperm(size, generator=generator, device="cpu") for size in (block_q, block_k)]
    picks = [places[: max(1, len(places) // 4)].to(order.device) for places in drawn]
    q, valid_q = _sample(query, order, picks[0], block_q)
    k, valid_k = _sample(key, order, picks[1], block_k)
    k = match_heads(k, q.shape[1])
    scale = query.shape[-1] ** -0.5

    def mass(q: Tensor, k: Tensor) -> Tensor:
        logits = (scale * q @ k.mT).masked_fill(~valid_k, -torch.inf).unflatten(-1, (-1, len(picks[1]))).amax(-1)
        probs = (logits - logits.amax(-1, keepdim=True)).exp() * valid_q[:, None]
        return probs.unflatten(-2, (-1, len(picks[0]))).amax(-2)

    parts = zip(q.flatten(0, 1).split(1), k.flatten(0, 1).split(1))
    peaks = torch.cat([mass(*part) for part in parts]).unflatten(0, q.shape[:2])
    return peaks / peaks.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _sample(tokens: Tensor, order: Tensor, pick: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Picked rows of every block `(B, H, N, D)` float32 and whether they hold a token `(N,)`.

    Where a pick is padding, the first row of its block stands in, which holds a token if any row does.
    """
    blocks = order.view(-1, block)
    rows = blocks[:, pick]
    rows = rows.where(rows >= 0, blocks[:, :1]).flatten()
    return finite(tokens.index_select(1, rows.clamp(min=0)).transpose(1, 2)), rows >= 0
