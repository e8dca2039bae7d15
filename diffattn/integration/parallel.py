"""Ulysses context parallelism (arXiv 2309.14509): sparse attention where each rank has all tokens of its heads.

diffusers exchanges shares of the sequence for shares of the heads, calls what is here, and exchanges back. Plans are
made of the whole sequence, so each rank has the plans of its heads that a single process would have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._compat import context_parallel_attention
from .attention_inputs import AttentionInputs
from .running import running


def check_parallel(config: Any) -> None:
    """Raise where a `ParallelConfig` leaves no rank with a whole sequence, or with all heads of a layer."""
    tensor = getattr(config, "tensor_parallel_config", None)
    if tensor is not None:
        raise NotImplementedError(
            f"tensor parallelism (tp_degree={tensor.tp_degree}) gives each rank some heads of every layer under the "
            "numbers of others, and has not been tried with plans and head sets: use "
            f"ContextParallelConfig(ulysses_degree={tensor.tp_degree}), or diffattn.disable the model"
        )
    context = getattr(config, "context_parallel_config", None)
    if context is not None and context.ring_degree > 1:
        raise NotImplementedError(
            f"ring attention (ring_degree={context.ring_degree}) never shows a rank the whole sequence, which sparse "
            f"plans need: use ContextParallelConfig(ulysses_degree={context.ring_degree * context.ulysses_degree}), "
            "or diffattn.disable the model"
        )


def attend_whole_sequence(inputs: AttentionInputs, config: Any) -> Tensor:
    """The attention of a rank that holds a share of the sequence, `(B, S / ranks, H, D)`."""
    return context_parallel_attention(*inputs, forward_op=_forward, backward_op=_backward, _parallel_config=config)


def _forward(
    ctx: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _save_ctx: bool = True,
    _parallel_config: Any = None,
) -> Tensor:
    """What diffusers calls between the exchanges: query, key, value `(B, S, H / ranks, D)`."""
    options = (attn_mask, dropout_p, is_causal, scale, enable_gqa)
    ranks = _parallel_config.context_parallel_config.ulysses_degree
    if _save_ctx:
        ctx.save_for_backward(query, key, value)
        ctx.processor, ctx.options, ctx.ranks = running.processor, options, ranks
    return running.processor.attend_or_dispatch(AttentionInputs(query, key, value, *options), ranks)


def _backward(ctx: Any, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        out = ctx.processor.attend_or_dispatch(AttentionInputs(*leaves, *ctx.options), ctx.ranks)
    return torch.autograd.grad(out, leaves, grad)
