"""Sparse attention as one opaque operator, for graphs that torch.compile makes.

A graph must be the same for every layer and step. So a layer is told by a tensor: Dynamo makes a constant, and a new
graph, of every int that differs. What Python does for a call (plans, counts, logs) happens inside the operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.handles import object_of
from ..kernels.opaque import gradients_of


@torch.library.custom_op("diffattn::attention", mutates_args=())
def compiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    number: Tensor,
    grid: list[int],
    scale: float | None,
) -> Tensor:
    """query, key, value `(B, S, H, D)`, key mask `(B, S)`; `grid` is what `Runtime.place` takes."""
    processor = object_of(number)
    runtime, layer = processor.runtime, processor.layer
    placement = runtime.place(query.shape[1], tuple(grid[:3]), *grid[3:])
    reason = placement if isinstance(placement, str) else runtime.why_not_worth(layer, query, key, placement)
    if reason is not None:
        layer.count_dense(reason)
        return _dense(query, key, value, key_mask, scale)
    return runtime.run(layer, query, key, value, placement, key_mask, scale).contiguous()


@compiled_attention.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor, key_mask: Any, number: Any, grid: Any, scale: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("diffattn::attention_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    number: Tensor,
    grid: list[int],
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the forward is run again."""
    processor = object_of(number)
    runtime, layer = processor.runtime, processor.layer
    placement = runtime.place(query.shape[1], tuple(grid[:3]), *grid[3:])

    def run(*leaves: Tensor) -> Tensor:
        if isinstance(placement, str) or runtime.why_not_worth(layer, query, key, placement):
            return _dense(*leaves, key_mask, scale)
        return runtime.run(layer, *leaves, placement, key_mask, scale)

    return gradients_of(run, (query, key, value), (grad,))


@_gradients.register_fake
def _shapes(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.grid, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return (*_gradients(grad, *ctx.saved_tensors, ctx.grid, ctx.scale), None, None, None, None)


def _dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor:
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = None if key_mask is None else key_mask[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous()


compiled_attention.register_autograd(_backward, setup_context=_keep)
