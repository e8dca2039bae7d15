"""Softmax attention of gathered keys in plain torch: the fastest form for the device and dtype."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of `(N, BQ, D)` queries to `(N, L, D)` keys.

    Args:
        mask (`torch.Tensor`, *optional*): `(N, 1|BQ, L)`, added to the scores.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(N, BQ, D)` in the dtype of `query` and lse `(N, BQ)` in float32 or
        wider; a row without any key gives 0 and -inf.
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and has_slow_flash_bf16():
        return _mixed(query, key, value, mask, scale)
    if query.device.type == "cpu" and _flash() is not None:
        return _flash_cpu(query, key, value, mask, scale)
    return _public(query, key, value, mask, scale)


@cache
def has_slow_flash_bf16() -> bool:
    """Whether torch's CPU flash attention leaves the bf16 units of this processor idle.

    It calls a gemm that widens bf16 to fp32 unless there is AMX, while a batched matmul of bf16 is four times as fast.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@cache
def _flash():
    # private, stable since torch 2.3, and the only CPU attention that returns lse; _public stands in without it
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _flash_cpu(query, key, value, mask, scale):
    out, lse = _flash()(
        query[:, None], key[:, None], value[:, None], attn_mask=None if mask is None else mask[:, None], scale=scale
    )
    out, lse = out[:, 0], lse[:, 0]
    if mask is not None:
        empty = (mask == -torch.inf).all(-1)
        out, lse = out.masked_fill(empty[..., None], 0), lse.masked_fill(empty, -torch.inf)
    return out, lse


def _mixed(query, key, value, mask, scale):
    """Scores and softmax in float32, the product with the values in bf16: as exact as flash attention."""
    scores = torch.bmm(query.float() * scale, key.float().mT)
    if mask is not None:
        scores += mask
    peak = scores.amax(-1, keepdim=True)
    probs = torch.softmax(scores, dim=-1)
    lse = (peak - probs.amax(-1, keepdim=True).log())[..., 0]
    if mask is not None:
        empty = peak == -torch.inf
        probs, lse = probs.masked_fill(empty, 0), lse.masked_fill(empty[..., 0], -torch.inf)
    return torch.bmm(probs.bfloat16(), value), lse


def _public(query, key, value, mask, scale):
    """With public operations only."""
    scores = torch.bmm(query * scale, key.mT)
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return torch.bmm(probs.to(value.dtype), value), lse
