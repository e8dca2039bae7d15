"""WanTransformer3DModel on a bare set of tokens: the same arithmetic as its `forward`, made cheap to train.

Three liberties: positions may be fractional and tokens any subset of the grid; padded text is one token with
an additive log-count; and rotary pairs are split in halves by permuting the query and key channels alike.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from diffattn.kernels.backends.torch.softmax import has_amx
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from examples.tiny_wan.latents import positions

AMX = has_amx()
EXPLICIT_BELOW = 300 if AMX else 800  # tokens up to which a materialised softmax beats SDPA on a CPU
HEADS_AT_ONCE = 2  # of a backward pass that writes N x N probabilities down
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def rotary_tables(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin, (N, head_dim / 2), for (N, 3) real positions, laid out as WanRotaryPosEmbed does."""
    side = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
        angles.append(positions[:, axis : axis + 1].double() * frequencies)
    table = torch.cat(angles, 1)
    return table.cos().float(), table.sin().float()


@lru_cache(maxsize=256)
def grid_tables(
    grid: tuple[int, int, int], kept: tuple[int, ...], head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`rotary_tables` of the frames `kept` of a grid, made once for each."""
    places = positions(grid).unflatten(0, (grid[0], -1))[list(kept)].flatten(0, 1)
    return tuple(table.to(device, dtype) for table in rotary_tables(places, head_dim))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, N, H, D) whose even channels come first; cos and sin are (N, 1, D / 2)."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense attention, (B, N, H, D) -> (B, N, H * D)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if query.is_cuda:
        out = F.scaled_dot_product_attention(query, key, value)
    elif query.shape[2] > EXPLICIT_BELOW:
        form = _BackwardOfMatrices if AMX and query.dtype == torch.bfloat16 else _ForwardInFloat32
        out = form.apply(query, key, value)
    else:
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        out = scores.softmax(-1) @ value
    return out.transpose(1, 2).flatten(2)


class _ForwardInFloat32(torch.autograd.Function):
    """SDPA on a CPU: forward in float32, backward in the inputs' dtype, as in bf16 each is the faster of the two."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, lse = FLASH(query.float(), key.float(), value.float())
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return FLASH_BACKWARD(grad, *ctx.saved_tensors, 0.0, False)


class _BackwardOfMatrices(torch.autograd.Function):
    """SDPA on a CPU with AMX: flash attention forward; backward whole matrices of `HEADS_AT_ONCE` heads, N x N each.

    Matrix products of bf16 are so fast there that writing the probabilities down costs less than blocks of them do.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, lse = FLASH(query, key, value)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, out, lse = ctx.saved_tensors
        scale, leading = query.shape[-1] ** -0.5, query.shape[:2]
        mean = (grad.float() * out.float()).sum(-1)
        rows = (x.flatten(0, 1).split(HEADS_AT_ONCE) for x in (query * scale, key, value, grad, lse, mean))
        grads = [_gradients(*parts) for parts in zip(*rows, strict=True)]
        dq, dk, dv = (torch.cat(parts).unflatten(0, leading) for parts in zip(*grads, strict=True))
        return dq * scale, dk, dv


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, lse: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of (heads, N, D) `query`, scaled, `key` and `value`; `lse` and `mean`, grad x out, are (heads, N)."""
    probs = (key @ query.mT - lse.unsqueeze(1)).exp()  # (heads, keys, queries), fp32
    scores = (probs * ((value @ grad.mT) - mean.unsqueeze(1))).to(query.dtype)
    return scores.mT @ key, scores @ query, probs.to(query.dtype) @ grad


def _even_first(channels: Tensor, heads: int) -> Tensor:
    """Reorder the rows (H * D, ...) so that in each head the even channels come first."""
    return channels.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _self_attention(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads, dtype = layer.heads, x.dtype
    rows = (layer.to_q, layer.norm_q), (layer.to_k, layer.norm_k)
    weight = torch.cat([*(_even_first(linear.weight, heads) for linear, _ in rows), layer.to_v.weight]).to(dtype)
    bias = torch.cat([*(_even_first(linear.bias, heads) for linear, _ in rows), layer.to_v.bias]).to(dtype)
    *pair, value = F.linear(x, weight, bias).chunk(3, -1)
    rotated = []
    for projected, (_, norm) in zip(pair, rows, strict=True):
        normed = F.rms_norm(projected, (layer.inner_dim,), _even_first(norm.weight, heads).to(dtype), norm.eps)
        rotated.append(_rotate(normed.unflatten(-1, (heads, -1)), cos, sin))
    out = attention(*rotated, value.unflatten(-1, (heads, -1)))
    return F.linear(out, layer.to_out[0].weight.to(dtype), layer.to_out[0].bias.to(dtype))


def _cross_attention(
    layer: nn.Module, x: Tensor, text: Tensor, log_count: Tensor, marks: Tensor
) -> tuple[Tensor, Tensor]:
    """`text` (B, L, C); `log_count` (B, 1, 1, L) is 0 for a word, log n for n equal pads, -inf for nothing.

    Also returns how much of the attention goes to the words in each column of `marks` (B, L, M): (B, N, M), the mean
    over the heads.
    """
    dtype = x.dtype
    query = F.linear(x, layer.to_q.weight.to(dtype), layer.to_q.bias.to(dtype))
    query = F.rms_norm(query, (layer.inner_dim,), layer.norm_q.weight.to(dtype), layer.norm_q.eps)
    key, value = layer.norm_k(layer.to_k(text)).to(dtype), layer.to_v(text).to(dtype)
    query, key, value = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in (query, key, value))
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + log_count.to(dtype)
    probs = scores.softmax(-1)
    out = (probs @ value).transpose(1, 2).flatten(2)
    out = F.linear(out, layer.to_out[0].weight.to(dtype), layer.to_out[0].bias.to(dtype))
    return out, probs.mean(1) @ marks.to(dtype)


def _modulated(x: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def _feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    first, last = layer.net[0].proj, layer.net[2]
    hidden = F.gelu(F.linear(x, first.weight.to(x.dtype), first.bias.to(x.dtype)), approximate="tanh")
    return F.linear(hidden, last.weight.to(x.dtype), last.bias.to(x.dtype))


def block(
    layer: nn.Module, x: Tensor, text: Tensor, log_count: Tensor, marks: Tensor, time: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """One WanTransformerBlock on (B, N, C) in the dtype of `x`; `time` is (B, 6, C).

    Also returns the attention to the marked words, see `_cross_attention`.
    """
    modulation = (layer.scale_shift_table + time).to(x.dtype)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.chunk(6, 1)
    eps = layer.norm1.eps
    x = x + _self_attention(layer.attn1, _modulated(x, eps, shift, scale), cos, sin) * gate
    norm = layer.norm2
    normed = F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), eps)
    words, marked = _cross_attention(layer.attn2, normed, text, log_count, marks)
    x = x + words
    return x + _feed_forward(layer.ffn, _modulated(x, eps, ffn_shift, ffn_scale)) * ffn_gate, marked


def forward_tokens(
    model: WanTransformer3DModel,
    tokens: Tensor,
    rotary: tuple[Tensor, Tensor],
    timestep: Tensor,
    text: Tensor,
    log_count: Tensor,
    marks: Tensor,
    dtype: torch.dtype = torch.float32,
    block: Callable[..., tuple[Tensor, Tensor]] = block,
) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity of noisy `tokens` (B, N, P P C), fp32, with `rotary` tables (N, D / 2), `timestep` (B,) in [0, 1000].

    Also returns the attention of each layer to the marked words, (layers, B, N, M) for `marks` (B, L, M), and the
    hidden states (B, N, width) after two thirds of the layers. `block` may be a compiled version of this module's.
    """
    cos, sin = (table.unsqueeze(1).to(dtype) for table in rotary)
    weight = model.patch_embedding.weight.permute(0, 2, 3, 4, 1).flatten(1)
    x = F.linear(tokens.to(dtype), weight.to(dtype), model.patch_embedding.bias.to(dtype))
    temb, time, text, _ = model.condition_embedder(timestep, text)
    hidden, marked = [], []
    for layer in model.blocks:
        x, seen = block(layer, x, text, log_count, marks, time.unflatten(1, (6, -1)), cos, sin)
        hidden.append(x)
        marked.append(seen)
    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, 1)
    return (
        model.proj_out(_modulated(x.float(), model.norm_out.eps, shift, scale)),
        torch.stack(marked),
        hidden[2 * len(hidden) // 3 - 1],
    )


def pad_text(embeddings: Tensor, mask: Tensor, length: int = 512) -> tuple[Tensor, Tensor]:
    """Stand in for zero padding to `length`: (B, L, C), (B, L) -> text (B, L + 1, C), log counts (B, 1, 1, L + 1).

    All pads are the same zero vector, so one of them with an additive log(count) does the work of them all.
    """
    count = mask.sum(1, keepdim=True)
    slot = torch.arange(mask.shape[1] + 1, device=mask.device)
    pad = torch.where(slot == count, (length - count).clamp(min=1).log(), -math.inf)
    text = F.pad(embeddings * mask.unsqueeze(-1), (0, 0, 0, 1))
    return text, torch.where(slot < count, 0.0, pad)[:, None, None]
