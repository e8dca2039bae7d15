"""Softmax attention of gathered keys in plain torch: the fastest form for the device and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .scratch import Scratch

SCORE_BYTES = 4 << 20  # of the scores that are held at once, at most


@dataclass(frozen=True)
class SoftmaxForm:
    """A way to compute softmax attention of `(N, *lead, BQ, D)` queries to `(N, *lead, L, D)` keys.

    Args:
        attention (`Callable`): `attention(query, key, value, mask, scale, scratch) -> (out, lse)`: `mask`
            `(N, *lead, 1|BQ, L)` or None is added to the scores, out is in the dtype of `query`, lse `(N, *lead, BQ)`
            in float32 or wider. What a row without any key gives is not defined.
        lead (`tuple[int, ...]`): dimensions that the form wants between.
        scored (`bool`): whether all scores are written to memory.
    """

    attention: Callable[..., tuple[Tensor, Tensor]]
    lead: tuple[int, ...] = ()
    scored: bool = True


def softmax_form(query: Tensor) -> SoftmaxForm:
    """The form for queries of this device and dtype."""
    if query.device.type != "cpu":
        return PUBLIC
    if query.dtype == torch.bfloat16 and has_slow_flash_bf16():
        return MIXED
    return PUBLIC if flash_cpu() is None else FLASH


@cache
def has_slow_flash_bf16() -> bool:
    """Whether torch's CPU flash attention leaves the bf16 units of this processor idle.

    It calls a gemm that widens bf16 to fp32 unless there is AMX, while a batched matmul of bf16 is 2 to 4 times as
    fast.
    """
    return torch.cpu._is_avx512_bf16_supported() and not has_amx()


@cache
def has_amx() -> bool:
    """Whether this processor multiplies tiles of bf16, as Intel's servers do since Sapphire Rapids."""
    return torch.cpu._is_amx_tile_supported()


@cache
def flash_cpu():
    """Torch's CPU flash attention: private, stable since 2.3, and the only one that returns lse. None without it."""
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def scaled_scores(query: Tensor, key: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """`scale * query @ key.mT + added`, the sum made within the product."""
    if added is None:
        return torch.bmm(query * scale, key.mT)
    return torch.baddbmm(added.to(query.dtype), query, key.mT, alpha=scale)


def _flash_cpu(query, key, value, mask, scale, scratch):
    return flash_cpu()(query, key, value, attn_mask=mask, scale=scale)


def _mixed(query, key, value, mask, scale, scratch: Scratch):
    """Scores and softmax in float32, the product with the values in bf16: as exact as flash attention.

    Torch has no CPU product of bf16 that gives float32, which scores must be: rounded to bf16 they cost two digits of
    lse. `mkldnn.matmul.fp32_precision` would make the first product one of bf16 too, but for all threads of the
    process.
    """
    query = query.float()
    parts = math.ceil(4 * query.shape[0] * query.shape[1] * key.shape[1] / SCORE_BYTES)
    if parts == 1:
        return _mixed_part(query, key, value, mask, scale, scratch)
    keys = math.ceil(key.shape[1] / parts)  # as many in each: a small rest takes longer than its share
    masks = (None,) * parts if mask is None else mask.split(keys, -1)
    some_keys = zip(key.split(keys, 1), value.split(keys, 1), masks)
    return _merged([_mixed_part(query, *some, scale, scratch) for some in some_keys])


def _mixed_part(query, key, value, mask, scale, scratch: Scratch):
    """The same for some of the keys; a row without any key has lse -inf."""
    shape = (*query.shape[:2], key.shape[1])
    wide = scratch("wide key", torch.float32, *key.shape).copy_(key)
    scores, probs = scratch("scores", torch.float32, *shape), scratch("probs", torch.bfloat16, *shape)
    beta, added = (0, scores) if mask is None else (1, mask.float())
    torch.baddbmm(added, query, wide.mT, beta=beta, alpha=scale, out=scores)
    peak = scores.amax(-1)
    torch.softmax(scores, dim=-1, out=scores)
    lse = peak - scores.amax(-1).log_()
    if mask is not None:
        lse = lse.where(peak > -torch.inf, peak)
    return torch.bmm(probs.copy_(scores), value), lse


def _merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention to all keys from that to some of them each: o = sum exp(lse_i - lse) o_i, lse = logsumexp lse_i."""
    outs, lses = (torch.stack(some) for some in zip(*parts))
    lse = lses.logsumexp(0)
    weight = (lses - lse.where(lse > -torch.inf, 0)).exp_()[..., None]
    outs = outs.masked_fill_(weight == 0, 0)  # where there is no key, out is not defined
    return (outs * weight).sum(0).to(outs.dtype), lse


def _public(query, key, value, mask, scale, scratch):
    """With public operations only."""
    scores = scaled_scores(query, key, mask, scale)
    lse = torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return torch.bmm(probs.to(value.dtype), value), lse


FLASH = SoftmaxForm(_flash_cpu, (1,), scored=False)
MIXED = SoftmaxForm(_mixed)
PUBLIC = SoftmaxForm(_public)
