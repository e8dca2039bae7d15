"""Softmax attention of gathered keys in plain torch: the fastest form for the device and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .scratch import Scratch

SCORE_BYTES = 2 << 20  # of the scores that are held at once, at most
LOG2_E = math.log2(math.e)  # turns scores into exponents of 2: exp2 takes a third of the time of exp on AMD
SAFE_LSE = 64.0  # of either sign: float32 holds the powers of 2 whose sums lie in this range


@dataclass(frozen=True)
class SoftmaxForm:
    """A way to compute softmax attention of `(N, *lead, BQ, D)` queries to `(N, *lead, L, D)` keys.

    Args:
        attention (`Callable`): `attention(query, key, value, mask, scale, scratch) -> (out, lse)`: `mask`
            `(N, *lead, 1|BQ, L)` or None is added to the scores, out is in the dtype of `query`, lse `(N, *lead, BQ)`
            in float32 or wider. A row without any key gives undefined values.
        lead (`tuple[int, ...]`): additional dimensions that the form needs.
        scored (`bool`): whether all scores are written to memory.
    """

    attention: Callable[..., tuple[Tensor, Tensor]]
    lead: tuple[int, ...] = ()
    scored: bool = True


def softmax_form(query: Tensor) -> SoftmaxForm:
    """The form for queries of this device and dtype."""
    if query.device.type != "cpu":
        return PLAIN
    if query.dtype == torch.bfloat16 and has_slow_flash_bf16():
        return MIXED
    return PLAIN if flash_cpu() is None else FLASH


@cache
def has_slow_flash_bf16() -> bool:
    """Whether torch's CPU flash attention leaves the bf16 units of this processor idle.

    Without AMX it calls a gemm that widens bf16 to fp32, while a batched matmul of bf16 is 2 to 4 times as fast.
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


def _mixed(query, key, value, mask, scale, scratch: Scratch, score_bytes: int = SCORE_BYTES):
    """Scores and softmax in float32, the product with the values in bf16: as exact as flash attention.

    Torch has no CPU product of bf16 tensors with a float32 result, and scores rounded to bf16 would cost two digits of
    lse. `mkldnn.matmul.fp32_precision` would run the first product in bf16 too, but in all threads of the process.
    """
    query = scratch("wide query", torch.float32, *query.shape).copy_(query)
    count = math.ceil(4 * query.shape[0] * query.shape[1] * key.shape[1] / score_bytes)
    parts = [(key, value, mask)] if count == 1 else _in_parts(key, value, mask, count)
    out, total = _sums(query, parts, None, scale, scratch)
    lse = total.squeeze(-1).log_()
    if float(torch.linalg.vector_norm(lse, math.inf)) <= SAFE_LSE:
        return out, lse
    peaks = [_exponents(query, key, mask, scale, scratch).amax(-1, keepdim=True) for key, _, mask in parts]
    peak = torch.cat(peaks, -1).amax(-1, keepdim=True)
    shift = peak.where(peak > -torch.inf, 0)
    out, total = _sums(query, parts, shift, scale, scratch)
    return out, (total.log_() + shift / LOG2_E).squeeze(-1)


def _in_parts(key, value, mask, count: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    keys = math.ceil(key.shape[1] / count)  # equal parts: a small rest takes longer than its share
    masks = (None,) * count if mask is None else mask.split(keys, -1)
    return list(zip(key.split(keys, 1), value.split(keys, 1), masks))


def _sums(query, parts, shift: Tensor | None, scale: float, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Attention, and the sum of the powers of 2 over all keys, `(N, BQ, 1)`; each exponent less `shift`."""
    outs, totals = zip(*(_part_sums(query, *part, shift, scale, scratch) for part in parts))
    if len(parts) == 1:
        return outs[0], totals[0]
    total = torch.stack(totals).sum(0)
    return torch.stack([out * part for out, part in zip(outs, totals)]).sum(0).div_(total).to(outs[0].dtype), total


def _part_sums(query, key, value, mask, shift, scale: float, scratch: Scratch) -> tuple[Tensor, Tensor]:
    powers = _exponents(query, key, mask, scale, scratch)
    if shift is not None:
        powers.sub_(shift)
    total = powers.exp2_().sum(-1, keepdim=True)
    powers.div_(total.clamp(min=math.exp(-SAFE_LSE)))  # avoids 0 / 0 where no key is valid
    probs = scratch("probs", torch.bfloat16, *powers.shape).copy_(powers)
    return torch.bmm(probs, value), total


def _exponents(query, key, mask, scale: float, scratch: Scratch) -> Tensor:
    """Scores as exponents of 2, `(N, BQ, L)` float32."""
    wide = scratch("wide key", torch.float32, *key.shape).copy_(key)
    scores = scratch("scores", torch.float32, *query.shape[:2], key.shape[1])
    beta, added = (0, scores) if mask is None else (1, mask.float() * LOG2_E)
    return torch.baddbmm(added, query, wide.mT, beta=beta, alpha=scale * LOG2_E, out=scores)


def _plain(query, key, value, mask, scale, scratch):
    """With public operations only."""
    scores = scaled_scores(query, key, mask, scale)
    lse = torch.logsumexp(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return torch.bmm(probs.to(value.dtype), value), lse


FLASH = SoftmaxForm(_flash_cpu, (1,), scored=False)
MIXED = SoftmaxForm(_mixed)
PLAIN = SoftmaxForm(_plain)
