"""`attend` as one opaque operator, for graphs that torch.compile makes: the same graph for every plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .handles import thing_of

AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


@torch.library.custom_op("diffattn::attend", mutates_args=())
def compiled_attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Tensor, scale: float | None, impl: str, check: bool
) -> tuple[Tensor, Tensor]:
    """out `(B, S, H, D)` and lse `(B, H, S)` of [`attend`]; `plan` is `Plan.number`."""
    from .attend import attend

    out, lse = attend(query, key, value, thing_of(plan), scale=scale, impl=impl, return_lse=True, check=check)
    return out.contiguous(), lse.contiguous()


@compiled_attend.register_fake
def _shapes(query: Tensor, key: Tensor, value: Tensor, plan: Any, scale: Any, impl: str, check: bool):
    return query.new_empty(query.shape), empty_lse(query, impl)


@torch.library.custom_op("diffattn::attend_backward", mutates_args=())
def _gradients(
    grad_out: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, plan: Tensor, scale: float | None,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value; the forward is run again."""
    from .attend import attend

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return attend(*tensors, thing_of(plan), scale=scale, impl=impl, return_lse=True)

    return gradients_of(run, (query, key, value), (grad_out, grad_lse))


@_gradients.register_fake
def _gradient_shapes(grad_out: Any, grad_lse: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


def empty_lse(query: Tensor, impl: str) -> Tensor:
    """lse `(B, H, S)` in the dtype that `attend` gives."""
    dtype = torch.float64 if impl == "reference" else torch.promote_types(query.dtype, torch.float32)
    return query.new_empty((query.shape[0], query.shape[2], query.shape[1]), dtype=dtype)


def gradients_of(run: Callable, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of `run(*inputs)`, inside of an operator."""
    # an operator runs below autograd, which has to be let in again
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(AUTOGRAD, False):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return tuple(part.contiguous() for part in torch.autograd.grad(run(*leaves), leaves, grads))


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.scale, ctx.impl, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple:
    return (*_gradients(grad_out, grad_lse, *ctx.saved_tensors, ctx.scale, ctx.impl), None, None, None, None)


compiled_attend.register_autograd(_backward, setup_context=_keep)
