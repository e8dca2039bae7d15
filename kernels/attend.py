"""The one attention op: any plan, any implementation."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from .backends.dense import dense_attention, why_dense
from .backends.reference import reference_attention
from .backends.rows import build_pyramid, gather_rows, scatter_rows, tile_means
from .backends.torch.slabs import by_slabs
from .handles import object_of
from .opaque import opaque_operator
from .plan.plan import Plan
from .validate import check_contents

logger = logging.getLogger(__name__)

IMPLS = ("auto", "torch", "triton", "reference")
NO_PARTIAL = "cannot test keys against boxes in partial tiles"


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
            `"auto"`, which chooses by device and logs why: one dense call where the plan keeps every key, on a CPU
            with the plan's mask for up to 1024 tokens of which it keeps most; else Triton on a GPU and torch
            elsewhere. The result is the plan's own in any case. A name that is asked for never falls back.
        return_lse (`bool`, *optional*, defaults to `False`): also return the log-sum-exp of the scores.
        check (`bool`, *optional*, defaults to `False`): look at every entry of the plan first, see
            [`~kernels.validate.check_contents`]; for debugging. Without it, shapes, dtypes and devices are checked.

    Returns:
        `torch.Tensor`: out `(B, S, H, D)` in the dtype of `query`; with `return_lse` also lse `(B, H, S)` in float32
        or wider. A query without any key gives 0 and -inf.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other or the plan, or an unknown `impl`.
        NotImplementedError: the plan needs what the named `impl` cannot do.
    """
    if torch.compiler.is_compiling():
        out, lse = attend_operator(query, key, value, plan.handle, scale, impl, check)
        return (out, lse) if return_lse else out
    _check(query, key, value, plan)
    if check:
        check_contents(plan)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    why = why_dense(plan, query, key, value, return_lse) if impl == "auto" else None
    impl = resolve_impl(impl, query.device, plan, why)
    if impl == "dense":
        out, lse = dense_attention(query, key, value, plan, scale)
    elif impl == "reference":
        out, lse = reference_attention(query, key, value, plan, scale)
        out = out.to(query.dtype)
    else:
        key, value = (_own_rows(tensor, plan, query.shape[2]) for tensor in (key, value))
        run = partial(by_slabs, _torch) if impl == "torch" else _triton
        out, lse = run(query, key, value, plan, scale)
    return (out, lse) if return_lse else out


def empty_outputs(query: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Out and lse of [`attend`] before there is anything in them."""
    batch, tokens, heads, _ = query.shape
    dtype = torch.float64 if impl == "reference" else torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty((batch, heads, tokens), dtype=dtype)


@opaque_operator("diffattn::attend", lambda *inputs: empty_outputs(inputs[0], inputs[5]))
def attend_operator(
    query: Tensor, key: Tensor, value: Tensor, plan: Tensor, scale: float | None, impl: str, check: bool
) -> tuple[Tensor, Tensor]:
    """Out and lse of [`attend`]; `plan` is `Plan.handle`."""
    return attend(query, key, value, object_of(plan), scale=scale, impl=impl, return_lse=True, check=check)


def _torch(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    from .backends.torch.tiles import forward

    return _on_rows(forward, query, key, value, plan, scale)


def _triton(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    from .backends.triton.forward import forward

    return _on_rows(forward, query, key, value, plan, scale)


def _on_rows(
    forward: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor]:
    """`forward` between the gather of tokens into rows and the scatter of rows into tokens."""
    plan = plan.unpacked
    rows = gather_rows(query, plan.query_rows, plan)
    out, lse = forward(rows, build_pyramid(key, plan), build_pyramid(value, plan), plan, scale)
    if plan.post is not None:
        out = plan.post(out, tile_means(value, plan, plan.post.tile))
    return scatter_rows(out, lse, plan)


def _own_rows(tensor: Tensor, plan: Plan, heads: int) -> Tensor:
    """Key or value; one for each query head where every head has its own order, and so its own rows."""
    groups = plan.order.shape[1] > 1 and tensor.shape[2] < heads
    return tensor.repeat_interleave(heads // tensor.shape[2], 2) if groups else tensor


def check_impl(impl: str) -> None:
    """Raise unless `impl` is a name that [`attend`] knows."""
    if impl == "xformers":
        raise ValueError(
            'xformers is no impl of sparse attention, it can run what stays dense: pip install "diffattn[xformers]", '
            'then transformer.set_attention_backend("xformers")'
        )
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, got {impl!r}")


def resolve_impl(impl: str, device: torch.device, plan: Plan | None = None, why_dense: str | None = None) -> str:
    """The implementation that `impl` means on `device`, for `plan`; `"auto"` is explained in the log once.

    `why_dense` makes it `"dense"`, which is no name to ask for.
    """
    check_impl(impl)
    lacking = plan is not None and plan.partial
    if impl == "triton" and lacking:
        raise NotImplementedError(f"impl='triton' {NO_PARTIAL}; use impl='torch' or strides that are whole tiles")
    if impl != "auto":
        return impl
    choice, reason = choose_impl(device) if why_dense is None else ("dense", why_dense)
    if choice == "triton" and lacking:
        choice, reason = "torch", f"the Triton kernels {NO_PARTIAL}"
    _explain(choice, reason)
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
def _explain(choice: str, reason: str) -> None:
    logger.info(f"impl='auto' runs {choice!r}: {reason}")


def _check(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point (B, S, H, D), got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.shape[1] != plan.tokens:
            raise ValueError(f"{name} has {tensor.shape[1]} tokens, the plan is for {plan.tokens}")
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, query {query.dtype} on {query.device}")
    if key.shape != value.shape or key.shape[::3] != query.shape[::3] or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} must agree in batch "
            "and head dim, and the query heads must be a multiple of the key heads"
        )
    if query.shape[-1] > 256:
        raise ValueError(f"head dim {query.shape[-1]} is more than 256")
    _check_plan(query, plan)


def _check_plan(query: Tensor, plan: Plan) -> None:
    tensors = {"order": plan.order, "q_rows": plan.order if plan.q_rows is None else plan.q_rows}
    for lists in plan.lists:
        tensors |= {f"counts of pool {lists.pool}": lists.counts, f"indices of pool {lists.pool}": lists.indices}
    for name, tensor in tensors.items():
        if tensor.device != query.device:
            raise ValueError(f"the plan is on {tensor.device} ({name}), query on {query.device}")
        for what, size, dim in (("batch", query.shape[0], 0), ("heads", query.shape[2], 1)):
            if tensor.shape[dim] not in (1, size):
                raise ValueError(f"the plan is for {what} {tensor.shape[dim]} ({name}), query has {size}")
    if plan.key_mask is not None and plan.key_mask.shape[0] not in (1, query.shape[0]):
        raise ValueError(f"key_mask is for batch {plan.key_mask.shape[0]}, query has {query.shape[0]}")
