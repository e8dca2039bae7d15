"""HunyuanVideo 1.5: its processor builds an S x S mask in every layer, so a processor with a key mask runs instead."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .._compat import apply_rotary_emb, dispatch_attention_fn
from .adapter import Adapter, Blocks, register
from .grids import video_grid


@functools.cache
def key_mask_class(cls: type) -> type:
    """A subclass whose mask is `(B, 1, 1, S)`: padded text still has queries, whose outputs nothing reads."""
    return type(f"KeyMask{cls.__name__}", (cls,), {"__call__": _attend})


def _attend(
    self,
    attn: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Joint attention of `(B, V, C)` visual and `(B, N, C)` text tokens with a `(B, N)` mask of valid text."""
    visual = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
    if image_rotary_emb is not None:
        visual[:2] = [apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in visual[:2]]
    joint, text = visual, 0
    if encoder_hidden_states is not None:
        text = encoder_hidden_states.shape[1]
        linear = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        added = _heads(attn, encoder_hidden_states, linear, (attn.norm_added_q, attn.norm_added_k))
        joint = [torch.cat(pair, dim=1) for pair in zip(visual, added)]
    if attention_mask is not None:
        ahead = joint[0].shape[1] - attention_mask.shape[1]
        attention_mask = nn.functional.pad(attention_mask.bool(), (ahead, 0), value=True)[:, None, None]
    out = dispatch_attention_fn(
        *joint, attn_mask=attention_mask, backend=self._attention_backend, parallel_config=self._parallel_config
    )
    out = out.flatten(2, 3).to(joint[0].dtype)
    if not text:
        return out, encoder_hidden_states
    visual_out, text_out = out.split((out.shape[1] - text, text), dim=1)
    return _project(attn.to_out, visual_out), _project([attn.to_add_out], text_out)


def _heads(attn: nn.Module, states: Tensor, linear: tuple, norms: tuple) -> list[Tensor]:
    """Query, key and value `(B, S, H, D)`, the first two normalised."""
    parts = [project(states).unflatten(-1, (attn.heads, -1)) for project in linear]
    return [norm(part) if norm is not None else part for norm, part in zip((*norms, None), parts)]


def _project(modules, states: Tensor) -> Tensor:
    for module in modules or ():
        states = states if module is None else module(states)
    return states


HUNYUAN_VIDEO_15 = register(
    Adapter(
        "HunyuanVideo15Transformer3DModel",
        Blocks(transformer_blocks="attn"),
        video_grid,
        other_tokens="after",
        processor=key_mask_class,
    )
)
