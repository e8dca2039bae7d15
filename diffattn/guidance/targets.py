"""What a perturbed head returns: its output interpolated towards a target, without an N x N matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..integration.masks import as_key_mask
from .strengths import Strengths

TARGETS = ("identity", "uniform", "seg", "local")
ROWS = ("all", "image", "image_block")
CHUNK = 4096  # rows of scores that `image_block` holds at a time


@dataclass(frozen=True)
class LayerCall:
    """One attention call of a layer.

    Args:
        query, key, value (`torch.Tensor`): `(B, S, H, D)`, after norm and RoPE; key and value may have fewer heads.
        mask (`torch.Tensor`, *optional*): as the model gives it.
        mask_kind (`str`): `Adapter.mask`.
        scale (`float`, *optional*): multiplies the scores, `D ** -0.5` by default.
        attention (`Callable`): `(query, key, value, mask)` to the output, dense or sparse.
        image (`tuple[int, int]`, *optional*): first and past-the-last row of the visual tokens, where known.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    mask_kind: str
    scale: float | None
    attention: Callable[..., Tensor]
    image: tuple[int, int] | None = None

    def heads(self, index: list[int]) -> LayerCall:
        """This call for some of its heads."""
        heads = self.query.shape[2]
        key, value, mask = self.key, self.value, self.mask
        if key.shape[2] != heads:
            key, value = (tensor.repeat_interleave(heads // tensor.shape[2], 2) for tensor in (key, value))
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == heads > 1:
            mask = mask[:, index]
        if index != list(range(heads)):
            query, key, value = (tensor[:, :, index] for tensor in (self.query, key, value))
        else:
            query = self.query
        return LayerCall(query, key, value, mask, self.mask_kind, self.scale, self.attention, self.image)

    def run(self) -> Tensor:
        """The unperturbed output `(B, S, H, D)`."""
        return self.attention(self.query, self.key, self.value, self.mask)

    def key_mask(self) -> Tensor | None:
        """`(B, S)` bool, False for keys nobody attends to."""
        if self.mask is None:
            return None
        reason, mask = as_key_mask(self.mask, self.query.shape[0], self.key.shape[1], self.mask_kind)
        if reason is not None:
            raise NotImplementedError(f"this target needs to know which keys are valid, but the layer has {reason}")
        return mask

    def scores_scale(self) -> float:
        """What multiplies the scores."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale


def perturb(
    call: LayerCall,
    strengths: Strengths,
    target: Callable[[LayerCall], Tensor] | str = "identity",
    rows: str = "all",
    unperturbed: Tensor | None = None,
) -> Tensor:
    """`O + u (target - O)` in the heads of `strengths`, `O` in the others (SoftPAG, arXiv 2506.10978, Section 3).

    Args:
        call ([`LayerCall`]): the attention call of the layer.
        strengths ([`Strengths`]): u `(B|1, H)`. Heads with u = 1 in all samples take no part in the attention.
        target (`str` or `Callable`, *optional*): one of `TARGETS` but `"local"`, or a function of the call.
        rows (`str`, *optional*): one of `ROWS`, the query rows that change.
        unperturbed (`torch.Tensor`, *optional*): `O` `(B, S, H, D)` of this call, if it was computed before.

    Returns:
        `torch.Tensor`: `(B, S, H, D)`.
    """
    if call.query.shape[1] != call.key.shape[1]:
        raise NotImplementedError("only self-attention can be perturbed: query and key sequences differ")
    first, last = _rows(call, rows)
    all_rows = (first, last) == (0, call.query.shape[1])
    perturbed, replaced = strengths.heads()
    out = _output_to_change(call, replaced if all_rows else [], unperturbed)
    chosen = call.heads(perturbed)
    if rows == "image_block":
        replacement = _image_block(chosen)
    else:
        replacement = (TARGET_FUNCTIONS[target] if isinstance(target, str) else target)(chosen)
        replacement = replacement if replacement.shape[1] == 1 else replacement[:, first:last]
    weight = strengths.weights(out, perturbed)[:, None, :, None]
    current = out[:, first:last, perturbed]
    out[:, first:last, perturbed] = torch.lerp(current, replacement.expand_as(current), weight)
    return out


def _rows(call: LayerCall, rows: str) -> tuple[int, int]:
    if rows == "all":
        return 0, call.query.shape[1]
    if call.image is None:
        raise NotImplementedError(f"rows={rows!r} needs the place of the visual tokens, which is not known here")
    return call.image


def _output_to_change(call: LayerCall, replaced: list[int], unperturbed: Tensor | None) -> Tensor:
    """A copy of O to write into; the heads `replaced` are left 0."""
    if unperturbed is not None:
        return unperturbed.clone()
    if not replaced:
        out = call.run()
        return out.clone() if out.requires_grad else out
    out = call.value.new_zeros(*call.query.shape[:3], call.value.shape[-1])
    kept = [head for head in range(call.query.shape[2]) if head not in replaced]
    if kept:
        out[:, :, kept] = call.heads(kept).run()
    return out


def identity(call: LayerCall) -> Tensor:
    """Every token sees only itself (PAG, arXiv 2403.17377): V."""
    return call.value


def uniform(call: LayerCall) -> Tensor:
    """Every token weighs all valid keys equally: the mean of V, `(B, 1, H, D)`."""
    return _one_row(call, torch.zeros_like(call.query[:, :1]))


def smoothed(call: LayerCall) -> Tensor:
    """All queries are their mean, the limit of wide blurring in SEG (arXiv 2408.00760): `(B, 1, H, D)`."""
    mask = call.key_mask()
    if mask is None:
        return _one_row(call, call.query.mean(1, keepdim=True))
    weights = mask.to(torch.promote_types(call.query.dtype, torch.float32))
    weights = weights / weights.sum(1, keepdim=True)
    return _one_row(call, torch.einsum("bs,bshd->bhd", weights, call.query.to(weights))[:, None])


TARGET_FUNCTIONS = {"identity": identity, "uniform": uniform, "seg": smoothed}


def _one_row(call: LayerCall, query: Tensor) -> Tensor:
    """Attention of one query `(B, 1, H, D)`, with scores in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.to(wide), call.key.to(wide)) * call.scores_scale()
    mask = call.key_mask()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), call.value.to(wide)).to(call.value)


def _image_block(call: LayerCall) -> Tensor:
    """Visual rows attend to themselves and to the tokens off the grid, as in diffusers' PAG for SD3."""
    first, last = call.image
    wide = torch.promote_types(call.query.dtype, torch.float32)
    query, key, value = (tensor.to(wide) for tensor in (call.query, call.key, call.value))
    others = [*range(first), *range(last, query.shape[1])]
    mask = call.key_mask()
    parts = []
    for start in range(first, last, CHUNK):
        at = slice(start, min(start + CHUNK, last))
        own = (query[:, at] * key[:, at]).sum(-1).transpose(1, 2)[..., None]
        scores = torch.cat([own, torch.einsum("bqhd,bkhd->bhqk", query[:, at], key[:, others])], -1)
        scores = scores * call.scores_scale()
        if mask is not None:
            scores[..., 1:].masked_fill_(~mask[:, None, None, others], -torch.inf)
        weights = scores.softmax(-1)
        seen = torch.einsum("bhqk,bkhd->bqhd", weights[..., 1:], value[:, others])
        parts.append(weights[..., :1].transpose(1, 2) * value[:, at] + seen)
    return torch.cat(parts, 1).to(call.value)
