"""Attention over a plan, by any implementation."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
from torch import Tensor

from .backends.dense import dense_attention, why_dense
from .backends.reference import reference_attention
from .backends.rows import attend_rows
from .backends.torch.head_groups import attend_by_head_groups
from .handles import object_of
from .opaque import opaque_operator
from .plan.plan import Plan
from .validate import check_contents, check_inputs

logger = logging.getLogger(__name__)

IMPLS = ("auto", "torch", "triton", "reference")
PARTIAL_UNSUPPORTED = "cannot test keys against boxes in partial tiles"


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    *,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
    check: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the query-key tiles of `plan`; one node in graphs of torch.compile, whatever the plan.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`, floating point, D at most 256.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`, Hkv a divisor of H.
        plan ([`Plan`]): built for S tokens, on the device of `query`.
        scale (`float`, *optional*, defaults to `D ** -0.5`): multiplies the scores.
        impl (`str`, *optional*, defaults to `"auto"`): `"torch"`, `"triton"`, `"reference"` (float64, quadratic), or
            `"auto"`, which chooses by device and logs the reason: one dense call for a plan that keeps every key, on a
            CPU also, with the plan as a mask, for up to 1024 tokens of which the plan keeps most; else Triton on a GPU
            and torch elsewhere. The result is that of the plan in any case. An explicit name never falls back.
        return_lse (`bool`, *optional*, defaults to `False`): also return the log-sum-exp of the scores.
        check (`bool`, *optional*, defaults to `False`): check every entry of the plan first, see
            [`~kernels.validate.check_contents`]; for debugging. Shapes, dtypes and devices are always checked.

    Returns:
        `torch.Tensor`: out `(B, S, H, D)` in the dtype of `query`; with `return_lse` also lse `(B, H, S)` in float32
        or wider. A query without any key gives 0 and -inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other or the plan, or an unknown `impl`.
        NotImplementedError: the named `impl` cannot run this plan.
    """
    if torch.compiler.is_compiling():
        out, lse = attend_operator(query, key, value, plan.handle, scale, impl, check)
        return (out, lse) if return_lse else out
    check_inputs(query, key, value, plan)
    if check:
        check_contents(plan)
    if impl in IMPLS and 0 in (query.shape[0], query.shape[2]):
        out, lse = _attend_empty(query, key, value, impl)
        return (out, lse) if return_lse else out
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    why = why_dense(plan, query, key, value, return_lse) if impl == "auto" else None
    impl = resolve_impl(impl, query.device, plan, why)
    if impl == "dense":
        out, lse = dense_attention(query, key, value, plan, scale)
    elif impl == "reference":
        out, lse = reference_attention(query, key, value, plan, scale)
        out = out.to(query.dtype)
    else:
        run = _torch_attention if impl == "torch" else _triton_attention
        out, lse = run(query, key, value, plan, scale)
    return (out, lse) if return_lse else out


def _attend_empty(query: Tensor, key: Tensor, value: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Out and lse of no batch entries or no heads, differentiable."""
    nothing = key.sum() + value.sum()
    dtype = empty_outputs(query, impl)[1].dtype
    return query + nothing, (query.sum(-1) + nothing).transpose(1, 2).to(dtype)


def empty_outputs(query: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Uninitialised out and lse of [`attend`]."""
    batch, tokens, heads, _ = query.shape
    dtype = torch.float64 if impl == "reference" else torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty((batch, heads, tokens), dtype=dtype)


@opaque_operator("diffattn::attend", lambda *inputs: empty_outputs(inputs[0], inputs[5]))
def attend_operator(
    query: Tensor, key: Tensor, value: Tensor, plan: Tensor, scale: float | None, impl: str, check: bool
) -> tuple[Tensor, Tensor]:
    """Out and lse of [`attend`]; `plan` is `Plan.handle`."""
    return attend(query, key, value, object_of(plan), scale=scale, impl=impl, return_lse=True, check=check)


def _torch_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    from .backends.torch.tiles import forward

    return attend_by_head_groups(partial(attend_rows, forward), query, key, value, plan, scale)


def _triton_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    from .backends.triton.forward import check_kernel_inputs, forward, specialized_launch
    from .backends.triton.tokens import attend_tokens

    check_kernel_inputs(query, plan)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    with current_device(query.device):
        if needs_grad or specialized_launch(query, plan):
            return attend_rows(forward, query, key, value, plan, scale)
        return attend_tokens(query, key, value, plan, scale)


def current_device(device: torch.device) -> AbstractContextManager:
    """A context in which Triton launches on `device`: it launches on the current one, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_impl(impl: str) -> None:
    """Raise unless `impl` is a name that [`attend`] knows."""
    if impl == "xformers":
        raise ValueError(
            'xformers is no impl of sparse attention, it can run dense calls: pip install "diffattn[xformers]", '
            'then transformer.set_attention_backend("xformers")'
        )
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, got {impl!r}")


def resolve_impl(impl: str, device: torch.device, plan: Plan | None = None, why_dense: str | None = None) -> str:
    """The implementation that `impl` stands for on `device` and for `plan`; the choice of `"auto"` is logged once.

    With a reason `why_dense`, `"auto"` stands for `"dense"`, which users cannot name.
    """
    check_impl(impl)
    has_partial = plan is not None and plan.partial
    if impl == "triton" and has_partial:
        raise NotImplementedError(
            f"impl='triton' {PARTIAL_UNSUPPORTED}; use impl='torch' or strides that are whole tiles"
        )
    if impl != "auto":
        return impl
    choice, reason = choose_impl(device) if why_dense is None else ("dense", why_dense)
    if choice == "triton" and has_partial:
        choice, reason = "torch", f"the Triton kernels {PARTIAL_UNSUPPORTED}"
    _log_choice(choice, reason)
    return choice


def choose_impl(device: torch.device) -> tuple[str, str]:
    """What `"auto"` picks on `device`, and why."""
    if device.type == "cpu":
        return "torch", "the tensors are on the CPU"
    if device.type != "cuda":
        return "torch", f"the Triton kernels are for CUDA and ROCm devices, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "torch", "triton is not installed"
    return "triton", f"the tensors are on {torch.cuda.get_device_name(device)}"


@cache
def _log_choice(choice: str, reason: str) -> None:
    logger.info(f"impl='auto' runs {choice!r}: {reason}")
