"""Softmax attention of gathered keys in plain torch: the fastest form for the device and dtype."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, hollow: bool = True
) -> tuple[Tensor, Tensor]:
    """Attention of `(N, BQ, D)` queries to `(N, L, D)` keys.

    Args:
        mask (`torch.Tensor`, *optional*): `(N, 1|BQ, L)`, added to the scores.
        hollow (`bool`, *optional*, defaults to `True`): whether the mask may leave a row without any key.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(N, BQ, D)` in the dtype of `query` and lse `(N, BQ)` in float32 or
        wider; a row without any key gives 0 and -inf.
    """
    out, lse = _form(query)(query, key, value, mask, scale)
    if mask is not None and hollow:
        empty = (mask == -torch.inf).all(-1)
        out, lse = out.masked_fill_(empty[..., None], 0), lse.masked_fill_(empty, -torch.inf)
    return out, lse


def holds_scores(query: Tensor) -> bool:
    """Whether `softmax_attention` of such queries writes all scores to memory."""
    return _form(query) is not _flash_cpu


def _form(query: Tensor):
    if query.device.type != "cpu":
        return _public
    if query.dtype == torch.bfloat16 and has_slow_flash_bf16():
        return _mixed
    return _public if flash_cpu() is None else _flash_cpu


@cache
def has_slow_flash_bf16() -> bool:
    """Whether torch's CPU flash attention leaves the bf16 units of this processor idle.

    It calls a gemm that widens bf16 to fp32 unless there is AMX, while a batched matmul of bf16 is 2 to 4 times as
    fast.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@cache
def flash_cpu():
    """Torch's CPU flash attention: private, stable since 2.3, and the only one that returns lse. None without it."""
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _flash_cpu(query, key, value, mask, scale):
    out, lse = flash_cpu()(
        query[:, None], key[:, None], value[:, None], attn_mask=None if mask is None else mask[:, None], scale=scale
    )
    return out[:, 0], lse[:, 0]


def _mixed(query, key, value, mask, scale):
    """Scores and softmax in float32, the product with the values in bf16: as exact as flash attention.

    Torch has no CPU product of bf16 that gives float32, which scores must be: rounded to bf16 they cost two digits of
    lse. `mkldnn.matmul.fp32_precision` would make the first product one of bf16 too, but for all threads of the
    process.
    """
    scores = scaled_scores(query.float(), key.float(), mask, scale)
    peak = scores.amax(-1, keepdim=True)
    probs = torch.softmax(scores, dim=-1)
    lse = (peak - probs.amax(-1, keepdim=True).log())[..., 0]
    return torch.bmm(probs.bfloat16(), value), lse


def scaled_scores(query: Tensor, key: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """`scale * query @ key.mT + added`, the sum made within the product."""
    if added is None:
        return torch.bmm(query * scale, key.mT)
    return torch.baddbmm(added.to(query.dtype), query, key.mT, alpha=scale)


def _public(query, key, value, mask, scale):
    """With public operations only."""
    scores = torch.bmm(query * scale, key.mT)
    scores = scores if mask is None else scores + mask
    lse = torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return torch.bmm(probs.to(value.dtype), value), lse
