"""`sparse_attention` as one opaque operator, for graphs that torch.compile makes: plans are made inside of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .grid import TokenGrid
from .kernels.handles import thing_of
from .kernels.operator import empty_lse, gradients_of


@torch.library.custom_op("diffattn::sparse_attention", mutates_args=())
def compiled_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, grid: list[int], name: str | None,
    number: Tensor | None, layer: int, scale: float | None, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out `(B, S, H, D)` and lse `(B, H, S)`; `grid` is frames, height, width, text and text_first.

    The method is given by its name, or by the number of its configuration.
    """
    out, lse = _run(query, key, value, key_mask, grid, name, number, layer, scale, impl)
    return out.contiguous(), lse.contiguous()


def _run(query, key, value, key_mask, grid, name, number, layer, scale, impl) -> tuple[Tensor, Tensor]:
    from .functional import sparse_attention

    *sizes, text, text_first = grid
    return sparse_attention(
        query, key, value, grid=TokenGrid(*sizes, text=text, text_first=bool(text_first)),
        config=name or thing_of(number), key_mask=key_mask, layer=layer, scale=scale, impl=impl, return_lse=True,
    )  # fmt: skip


@compiled_sparse_attention.register_fake
def _shapes(query: Tensor, key: Any, value: Any, *others: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), empty_lse(query, others[-1])


@torch.library.custom_op("diffattn::sparse_attention_backward", mutates_args=())
def _gradients(
    grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None,
    grid: list[int], name: str | None, number: Tensor | None, layer: int, scale: float | None, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value; plan and forward are made again."""

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return _run(*tensors, key_mask, grid, name, number, layer, scale, impl)

    return gradients_of(run, (query, key, value), (grad_out, grad_lse))


@_gradients.register_fake
def _gradient_shapes(grad_out: Any, grad_lse: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    query, key, value, key_mask, ctx.grid, ctx.name, number, *ctx.others = inputs
    ctx.save_for_backward(query, key, value, key_mask, number)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple:
    *tensors, number = ctx.saved_tensors
    grads = _gradients(grad_out, grad_lse, *tensors, ctx.grid, ctx.name, number, *ctx.others)
    return (*grads, *[None] * 7)


compiled_sparse_attention.register_autograd(_backward, setup_context=_keep)
