"""Attention a few heads at a time, which bounds the copies of query, key and value in the order of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...plan.plan import Plan
from ...plan.plan_of_heads import plan_of_heads
from .threads import in_threads, share_of_threads

GROUP_BYTES = 12 << 20  # per thread, of the query, key and value rows of one group
HeadGroup = tuple[slice, slice, slice]  # batch entries, heads and KV heads
Attention = Callable[[Tensor, Tensor, Tensor, Plan, float], tuple[Tensor, Tensor]]


def attend_by_head_groups(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float,
    group_bytes: int = GROUP_BYTES,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`attention(query, key, value, plan, scale) -> (out, lse)`, called for one group of heads after the other.

    Without gradients, and if one group does not hold all heads, every thread of a CPU takes one KV head after another.
    The heads that the threads cannot share evenly come last, and all threads work on each of them.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.
        group_bytes (`int`, *optional*): bytes of a group's rows, per thread.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, S, H, D)` and lse `(B, H, S)`.
    """
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    workers, threads = share_of_threads(query.device)
    fitting = group_bytes * torch.get_num_threads() // _bytes_of_head(query, key, plan)
    groups = list(_head_groups(query, key, max(fitting, workers if needs_grad else 1)))

    def run(group: HeadGroup) -> tuple[Tensor, Tensor]:
        entries, heads, kv_heads = group
        part = plan_of_heads(plan, entries, heads)
        return attention(query[entries, :, heads], key[entries, :, kv_heads], value[entries, :, kv_heads], part, scale)

    if len(groups) == 1:
        return run(groups[0])
    if needs_grad:
        return _joined([run(group) for group in groups], query.shape[0])
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    wide = torch.promote_types(query.dtype, torch.float32)
    lse = torch.empty(query.shape[0], query.shape[2], query.shape[1], dtype=wide, device=query.device)

    def write(groups: Iterator[HeadGroup]) -> None:
        for entries, heads, kv_heads in groups:
            out[entries, :, heads], lse[entries, heads] = run((entries, heads, kv_heads))

    shared = 0
    if query.device.type == "cpu":
        groups = list(_head_groups(query, key, 1))
        shared = len(groups) // workers * workers
    queue = iter(groups[:shared])  # shared: a free worker takes the next group
    in_threads(lambda _: write(queue), workers, threads, shared > 0)
    write(iter(groups[shared:]))
    return out, lse


def _bytes_of_head(query: Tensor, key: Tensor, plan: Plan) -> int:
    """Bytes of the query, key and value rows of one KV head."""
    queries_per_key = query.shape[2] // key.shape[2]
    rows = plan.query_shape[-1] * queries_per_key + 2 * plan.order.shape[-1]
    return query.element_size() * query.shape[-1] * rows


def _head_groups(query: Tensor, key: Tensor, kv_heads: int) -> Iterator[HeadGroup]:
    """Groups of so many KV heads, across batch entries where an entry has fewer."""
    batch, heads, count = query.shape[0], query.shape[2], key.shape[2]
    entries = max(1, kv_heads // count)
    for first in range(0, batch, entries):
        for head in range(0, count, kv_heads):
            last = min(head + kv_heads, count)
            yield (
                slice(first, min(first + entries, batch)),
                slice(head * heads // count, last * heads // count),
                slice(head, last),
            )


def _joined(parts: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
    """The groups concatenated, without in-place writes, which gradients do not allow."""
    across = len(parts) * parts[0][0].shape[0] // batch  # groups of heads for the same batch entries
    rows = [parts[first : first + across] for first in range(0, len(parts), across)]
    outs, lses = zip(*((torch.cat([p[0] for p in row], 2), torch.cat([p[1] for p in row], 1)) for row in rows))
    return (outs[0], lses[0]) if len(rows) == 1 else (torch.cat(outs), torch.cat(lses))
