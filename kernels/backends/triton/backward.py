"""Gradients of block-sparse attention in Triton: without atomics, so that every run gives the same bits.

With P = exp(s q k^T + logw - lse) and dS = P * (dO v^T - (rowsum(dO * O) - dLSE)): dq = s dS k, dk = s dS^T q and
dv = P^T dO. `dq` goes through the lists like the forward kernel; `dk` and `dv` go through the transposed lists.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...plan.plan import Plan
from .common import compiles, launch_order, query_constants, strided, strides, weighted_levels
from .config import architecture, launch_for
from .dkv import run_key_gradient
from .dq import query_gradient_kernel
from .lists import aligned, level_arguments


def run_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor,
    plan: Plan, scale: float, keys: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of `run_forward`.

    Args:
        query, out, grad_out (`torch.Tensor`): `(B, H, Rq, D)`.
        key, value (`torch.Tensor`): `(B, Hkv, Rkv, D)`.
        lse, grad_lse (`torch.Tensor`): `(B, H, Rq)` float32.
        keys (`bool`, *optional*, defaults to `True`): whether dk and dv are wanted.

    Returns:
        `tuple`: dq, dk and dv, in the shapes and the dtype of query, key and value.
    """
    query, key, value, out, grad_out = strided(query, key, value, out, grad_out)
    lse, grad_lse = lse.contiguous(), grad_lse.contiguous()
    batch, heads, rows, dim = query.shape
    grad_query, delta = torch.empty_like(query), torch.empty_like(lse)
    tiles = tuple(lists.tile for lists in plan.lists)
    upcast = not compiles(query_gradient_kernel)
    launch = launch_for(architecture(query.device), dim, query.element_size(), plan.block_q, tiles, "dq")
    order = aligned(launch_order(plan)).expand(batch, heads, -1)
    logw = plan.kv_logw.expand(batch, key.shape[1], -1)
    grid = (rows // plan.block_q * triton.cdiv(plan.block_q, launch.block_m), heads, batch)
    query_gradient_kernel[grid](
        query, key, value, logw, out, lse, grad_out, grad_lse, grad_query, delta, order,
        level_arguments(plan, batch, heads), *strides(query, key, value, logw, out, grad_out, grad_query, order),
        scale, heads // key.shape[1], rows,
        **query_constants(dim, plan.block_q, tiles, weighted_levels(plan), launch, upcast),
        **launch.options(),
    )  # fmt: skip
    if not keys:
        return grad_query, None, None
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    for lists, weighted in zip(plan.lists, weighted_levels(plan)):
        tensors = (query, key, value, logw, grad_out, lse, delta, grad_key, grad_value)
        run_key_gradient(*tensors, plan, lists, weighted, scale)
    return grad_query, grad_key, grad_value
