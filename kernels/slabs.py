"""A few heads at a time: rows in the order of a plan are copies of query, key and value, and slabs bound them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .plan import Plan
from .routed import RoutedRows
from .threads import in_threads, share_of_threads

SLAB_BYTES = 24 << 20  # per thread, of the query, key and value of one slab
Slab = tuple[slice, slice, slice]  # batch entries, heads and KV heads


def by_slabs(
    attention: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor]:
    """`attention(query, key, value, plan, scale) -> (out, lse)`, called for one slab of heads after the other.

    Where one slab does not hold them all, and without gradients, every thread takes slabs of one KV head for itself;
    those that they cannot share evenly follow, and all threads work on each.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`.
    """
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    slabs = list(_slabs(query, key, plan, share_of_threads(query.device)[0] if learns else 1))

    def part(slab: Slab) -> tuple[Tensor, Tensor]:
        at, heads, kv_heads = slab
        own = _part(plan, at, heads)
        return attention(query[at, :, heads], key[at, :, kv_heads], value[at, :, kv_heads], own, scale)

    if len(slabs) == 1:
        return part(slabs[0])
    return _joined([part(slab) for slab in slabs], query.shape[0]) if learns else _filled(part, query, key, slabs)


def _filled(
    part: Callable[[Slab], tuple[Tensor, Tensor]], query: Tensor, key: Tensor, slabs: list[Slab]
) -> tuple[Tensor, Tensor]:
    """What `part` gives for all slabs, or for single KV heads where threads can share those."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    wide = torch.promote_types(query.dtype, torch.float32)
    lse = torch.empty(query.shape[0], query.shape[2], query.shape[1], dtype=wide, device=query.device)
    workers, each = share_of_threads(query.device)
    singles = list(_single_slabs(query, key)) if workers > 1 else []
    shared = len(singles) // workers * workers

    def fill(queue: Iterator[Slab]) -> None:
        for slab in queue:
            out[slab[0], :, slab[1]], lse[slab[0], slab[1]] = part(slab)

    queue = iter(singles[:shared])  # the workers share it: whoever is free takes the next
    in_threads(lambda _: fill(queue), workers, each, shared > 0)
    fill(iter(singles[shared:] if workers > 1 else slabs))
    return out, lse


def _slabs(query: Tensor, key: Tensor, plan: Plan, least: int) -> Iterator[Slab]:
    """Slabs of at least `least` KV heads, where there are as many, that are as large as they may be."""
    batch, _, heads, dim = query.shape
    group = heads // key.shape[2]
    row_bytes = query.element_size() * dim * (plan.query_shape[-1] * group + 2 * plan.order.shape[-1])
    held = max(least, SLAB_BYTES * torch.get_num_threads() // row_bytes)  # KV heads
    entries = max(1, min(batch, held // key.shape[2]))
    for first in range(0, batch, entries):
        at = slice(first, min(first + entries, batch))
        for head in range(0, key.shape[2], held):
            kv_heads = slice(head, min(head + held, key.shape[2]))
            yield at, slice(kv_heads.start * group, kv_heads.stop * group), kv_heads


def _single_slabs(query: Tensor, key: Tensor) -> Iterator[Slab]:
    """One for each KV head of each batch entry."""
    group = query.shape[2] // key.shape[2]
    for entry in range(key.shape[0]):
        for head in range(key.shape[2]):
            yield slice(entry, entry + 1), slice(head * group, (head + 1) * group), slice(head, head + 1)


def _part(plan: Plan, batch: slice, heads: slice) -> Plan:
    """The plan of some batch entries and heads, kept for the next call; itself where it is the same for all."""

    def cut(tensor: Tensor | RoutedRows | None) -> Tensor | RoutedRows | None:
        shared = slice(None)
        if isinstance(tensor, RoutedRows):
            return replace(tensor, bits=cut(tensor.bits))
        if tensor is None or tensor.ndim == 2:
            return tensor if tensor is None or len(tensor) == 1 else tensor[batch]
        return tensor[batch if tensor.shape[0] > 1 else shared, heads if tensor.shape[1] > 1 else shared]

    at = ("part", batch.start, batch.stop, heads.start, heads.stop)
    if plan.shared:
        return plan
    if at not in plan._cache:
        parts = {name: cut(getattr(plan, name)) for name in ("order", "q_rows", "key_mask")}
        names = ("counts", "indices", "partial")
        levels = tuple(replace(level, **{name: cut(getattr(level, name)) for name in names}) for level in plan.lists)
        post = plan.post and replace(plan.post, scale=cut(plan.post.scale), weights=cut(plan.post.weights))
        plan._cache[at] = replace(plan, **parts, lists=levels, post=post, _cache={})
    return plan._cache[at]


def _joined(parts: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
    """The slabs put together without writing in place, as gradients want it."""
    across = len(parts) * parts[0][0].shape[0] // batch  # slabs of heads for the same batch entries
    rows = [parts[first : first + across] for first in range(0, len(parts), across)]
    outs, lses = zip(*((torch.cat([p[0] for p in row], 2), torch.cat([p[1] for p in row], 1)) for row in rows))
    return (outs[0], lses[0]) if len(rows) == 1 else (torch.cat(outs), torch.cat(lses))
