"""Operators that torch.compile does not trace into: one node in its graph and one in the backward graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
# A CUDA graph would replay the launches of one plan for ever: the operators read handles, and plans from them.
NOT_CAPTURED = (torch.Tag.cudagraph_unsafe,)
Outputs = Tensor | tuple[Tensor, ...]


def opaque_operator(
    name: str, fake: Callable[..., Outputs], differentiable: int = 3, rerun: Callable[..., Outputs] | None = None
) -> Callable[[Callable[..., Outputs]], torch.library.CustomOpDef]:
    """Decorator that makes an operator of an eager function, whose annotations become its schema.

    The backward runs the function again, with gradients; only the arguments are saved for it.

    Args:
        name (`str`): `"namespace::name"`; the backward is the operator `"namespace::name_backward"`.
        fake (`Callable`): takes the same arguments and returns empty outputs of the right shapes and dtypes.
        differentiable (`int`, *optional*, defaults to 3): number of arguments with gradients, at least two. They come
            first and are tensors.
        rerun (`Callable`, *optional*): runs in the backward in place of the function, with the same arguments, if a
            second run must not count or log again.
    """

    def define(forward: Callable[..., Outputs]) -> torch.library.CustomOpDef:
        schema = torch.library.infer_schema(forward, mutates_args=())
        operator = torch.library.custom_op(
            name, lambda *inputs: _contiguous(forward(*inputs)), mutates_args=(), schema=schema, tags=NOT_CAPTURED
        )
        operator.register_fake(fake)
        backward = _backward_operator(name, schema, rerun or forward, differentiable)
        operator.register_autograd(_gradient_rule(backward, differentiable), setup_context=_save_inputs)
        return operator

    return define


def _backward_operator(name: str, schema: str, forward: Callable, differentiable: int) -> torch.library.CustomOpDef:
    """The operator of the gradients of `forward`: takes the gradients of its outputs, then its arguments."""
    arguments, returns = schema[1:].rsplit(") -> ", 1)
    outputs = returns.count("Tensor")
    incoming = ", ".join(f"Tensor grad_{index}" for index in range(outputs))
    found = ", ".join(["Tensor"] * differentiable)

    def gradients(*inputs: Any) -> tuple[Tensor, ...]:
        grads, tensors, others = (
            inputs[:outputs],
            inputs[outputs:][:differentiable],
            inputs[outputs + differentiable :],
        )
        return gradients_of(lambda *leaves: forward(*leaves, *others), tensors, grads)

    def shapes(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in inputs[outputs:][:differentiable])

    operator = torch.library.custom_op(
        f"{name}_backward", gradients, mutates_args=(), schema=f"({incoming}, {arguments}) -> ({found})",
        tags=NOT_CAPTURED,
    )  # fmt: skip
    operator.register_fake(shapes)
    return operator


def gradients_of(run: Callable[..., Outputs], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of `run(*inputs)`, within an operator."""
    # operators run below autograd, which has to be enabled again
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(AUTOGRAD, False):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return _contiguous(torch.autograd.grad(run(*leaves), leaves, grads))


def _save_inputs(ctx: Any, inputs: tuple, output: Outputs) -> None:
    ctx.save_for_backward(*[value if isinstance(value, Tensor) else None for value in inputs])
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]


def _gradient_rule(backward: torch.library.CustomOpDef, differentiable: int) -> Callable:
    def rule(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [other if tensor is None else tensor for tensor, other in zip(ctx.saved_tensors, ctx.others)]
        return (*backward(*grads, *inputs), *[None] * (len(inputs) - differentiable))

    return rule


def _contiguous(outputs: Outputs) -> Outputs:
    if isinstance(outputs, Tensor):
        return outputs.contiguous()
    return tuple(output.contiguous() for output in outputs)
