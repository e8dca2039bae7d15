"""Merging the rows of each token by their log-sum-exp, in a fixed order: without atomics and copies in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import load_rows, strides

BLOCK = 64  # tokens of one program


@triton.jit(do_not_specialize=["tokens", "rows"])
def merge_kernel(out, lse, merged, merged_lse, first, row_of, out_strides, merged_strides, first_strides, row_strides,
                 tokens, rows, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """BLOCK tokens of one head; the rows of token t are `row_of[first[t]]` to `row_of[first[t + 1] - 1]`."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    first += batch * first_strides[0] + head * first_strides[1]
    row_of += batch * row_strides[0] + head * row_strides[1]
    begin = tl.load(first + token, mask=inside, other=0)
    count = tl.load(first + token + 1, mask=inside, other=0) - begin
    d = tl.arange(0, BLOCK_D)
    out += batch * out_strides[0] + head * out_strides[1]
    lse += (batch * tl.num_programs(1) + head) * rows
    peak = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in tl.range(tl.max(count)):
        live = step < count
        row = tl.load(row_of + begin + step, mask=live, other=0).to(tl.int64)
        part = tl.load(lse + row, mask=live, other=float("-inf"))
        # (BLOCK, BLOCK_D)
        o = load_rows(out, row, out_strides[2], d, live, D, True).to(tl.float32)
        new_peak = tl.maximum(peak, part)
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weight, shrink = tl.exp(part - base), tl.exp(peak - base)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + o * weight[:, None]
        peak = new_peak
    total = tl.where(total == 0.0, 1.0, total)  # tokens without any key
    merged += batch * merged_strides[0] + head * merged_strides[1]
    place = token.to(tl.int64)[:, None] * merged_strides[2] + d[None, :]
    acc = acc / total[:, None]
    tl.store(merged + place, acc.to(merged.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    tl.store(merged_lse + (batch * tl.num_programs(1) + head) * tokens + token, peak + tl.log(total), mask=inside)


def merge_rows(out: Tensor, lse: Tensor, q_rows: Tensor, merged: Tensor, merged_lse: Tensor) -> None:
    """Fills `merged` and `merged_lse`: o = sum exp(lse_r - lse) o_r and lse = logsumexp lse_r over a token's rows.

    Args:
        out (`torch.Tensor`): `(B, H, Rq, D)`.
        lse (`torch.Tensor`): `(B, H, Rq)` float32, contiguous.
        q_rows (`torch.Tensor`): `(B|1, H|1, Rq)`, token of each row, -1 for padding.
        merged (`torch.Tensor`): `(B, H, S, D)`.
        merged_lse (`torch.Tensor`): `(B, H, S)` float32, contiguous.
    """
    batch, heads, tokens, dim = merged.shape
    first, row_of = _rows_of_tokens(q_rows, tokens)
    first, row_of = (part.expand(batch, heads, -1) for part in (first, row_of))
    merge_kernel[(triton.cdiv(tokens, BLOCK), heads, batch)](
        out, lse, merged, merged_lse, first, row_of, *strides(out, merged, first, row_of), tokens, out.shape[2],
        D=dim, BLOCK=BLOCK, BLOCK_D=max(16, triton.next_power_of_2(dim)), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip


def _rows_of_tokens(q_rows: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The rows of every token, token by token: where each token's begin `(b, h, S + 1)`, and the rows `(b, h, Rq)`."""
    by_token = q_rows.sort(dim=-1, stable=True)
    edges = torch.arange(tokens + 1, dtype=q_rows.dtype, device=q_rows.device).expand(*q_rows.shape[:2], -1)
    return torch.searchsorted(by_token.values, edges.contiguous()), by_token.indices
