"""The part of a plan for some batch entries and heads."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .plan import Plan
from .routed import RoutedRows


def plan_of_heads(plan: Plan, batch: slice, heads: slice) -> Plan:
    """The plan of some batch entries and heads, kept in the memo; `plan` itself where all have the same."""

    def cut(tensor: Tensor | RoutedRows | None) -> Tensor | RoutedRows | None:
        shared = slice(None)
        if isinstance(tensor, RoutedRows):
            return replace(tensor, bits=cut(tensor.bits))
        if tensor is None or tensor.ndim == 2:
            return tensor if tensor is None or len(tensor) == 1 else tensor[batch]
        return tensor[batch if tensor.shape[0] > 1 else shared, heads if tensor.shape[1] > 1 else shared]

    def make() -> Plan:
        parts = {name: cut(getattr(plan, name)) for name in ("order", "q_rows", "key_mask")}
        names = ("counts", "indices", "partial")
        levels = tuple(replace(level, **{name: cut(getattr(level, name)) for name in names}) for level in plan.lists)
        post = plan.post and replace(plan.post, scale=cut(plan.post.scale), weights=cut(plan.post.weights))
        return replace(plan, **parts, lists=levels, post=post)

    if plan.shared:
        return plan
    return plan.memo(("part", batch.start, batch.stop, heads.start, heads.stop), make)
