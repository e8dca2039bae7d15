"""A few heads at a time: rows in the order of a plan are copies of query, key and value, and slabs bound them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...plan.part import part_of
from ...plan.plan import Plan
from .heads import head_job
from .scratch import Scratch
from .threads import in_threads, share_of_threads

SLAB_BYTES = 12 << 20  # per thread, of the query, key and value of one slab
Slab = tuple[slice, slice, slice]  # batch entries, heads and KV heads


def by_slabs(
    attention: Callable, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor]:
    """`attention(query, key, value, plan, scale) -> (out, lse)`, called for one slab of heads after the other.

    Where one slab does not hold them all, and without gradients, every thread takes one head after the other for
    itself; those that they cannot share evenly follow, and all threads work on each.

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
        own = part_of(plan, at, heads)
        return attention(query[at, :, heads], key[at, :, kv_heads], value[at, :, kv_heads], own, scale)

    if len(slabs) == 1:
        return part(slabs[0])
    if learns:
        return _joined([part(slab) for slab in slabs], query.shape[0])
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    wide = torch.promote_types(query.dtype, torch.float32)
    lse = torch.empty(query.shape[0], query.shape[2], query.shape[1], dtype=wide, device=query.device)

    def job(slab: Slab, scratch: Scratch) -> Callable[[Scratch], None]:
        at, heads, kv_heads = slab
        k, v, own = key[at, :, kv_heads], value[at, :, kv_heads], part_of(plan, at, heads)
        return head_job(query[at, :, heads], k, v, own, scale, out[at, :, heads], lse[at, heads], scratch)

    if query.device.type == "cpu" and plan.q_rows is None and plan.post is None:
        slabs = _share(job, list(_single_slabs(query, key)), query.device)
    for at, heads, kv_heads in slabs:
        out[at, :, heads], lse[at, heads] = part((at, heads, kv_heads))
    return out, lse


def _share(job: Callable[[Slab, Scratch], Callable], slabs: list[Slab], device: torch.device) -> list[Slab]:
    """Run the jobs of single heads, a head for each thread; returns those that threads cannot share evenly."""
    workers, each = share_of_threads(device)
    shared = len(slabs) // workers * workers
    queue, started = iter(slabs[:shared]), []  # the workers share them: whoever is free takes the next

    def run(_: int) -> None:
        scratch = Scratch(device)
        for slab in queue:
            mine = job(slab, scratch)
            started.append(mine)
            mine(scratch)  # to its end, for the next job takes its memory
        for other in list(started):  # no head is left: help those who still have some of theirs
            other(scratch)

    in_threads(run, workers, each, shared > 0)
    return slabs[shared:]


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


def _joined(parts: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
    """The slabs put together without writing in place, as gradients want it."""
    across = len(parts) * parts[0][0].shape[0] // batch  # slabs of heads for the same batch entries
    rows = [parts[first : first + across] for first in range(0, len(parts), across)]
    outs, lses = zip(*((torch.cat([p[0] for p in row], 2), torch.cat([p[1] for p in row], 1)) for row in rows))
    return (outs[0], lses[0]) if len(rows) == 1 else (torch.cat(outs), torch.cat(lses))
