"""One head straight from tokens to tokens, in plain torch: what inference on a CPU takes where heads are long.

Beside the result only the queries, keys and values of one KV head for each thread are copied, into memory that the
next head uses again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan.part import part_of
from ...plan.plan import Plan
from ..rows import build_pyramid
from .chunk import softmax_of_chunk
from .scratch import Scratch
from .softmax import softmax_form
from .worklist import Worklist, worklist


def head_job(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, out: Tensor, lse: Tensor, scratch: Scratch
) -> Callable[[Scratch], None]:
    """What writes the attention of one batch entry and one KV head to `out` and `lse`, chunk after chunk.

    Several threads may call it at once, each with its own scratch: whoever is free takes the next chunk. It reads
    keys and values from `scratch`, and must have ended before the next job is made with that.

    Args:
        query, out (`torch.Tensor`): `(1, S, G, D)`, the heads that share the KV head.
        key, value (`torch.Tensor`): `(1, S, 1, D)`.
        plan ([`Plan`]): of these heads, without `q_rows` and `post`.
        lse (`torch.Tensor`): `(1, G, S)`.
        scratch ([`Scratch`]): of the thread that makes the job.
    """
    form = softmax_form(query)
    keys, values = (_rows(tensor, plan, scratch, name) for name, tensor in (("keys", key), ("values", value)))
    parts = [part_of(plan, slice(0, 1), slice(head, head + 1)) for head in range(query.shape[2])]
    works = [worklist(part, (1, 1, part.order.shape[-1]), keys, form.scored) for part in parts]
    granules = works[0].granules(keys), works[0].granules(values)
    tasks = []
    for head, (part, work) in enumerate(zip(parts, works)):
        placed, heads = _placed(part, work), (query[0, :, head], _by_16_bytes(out[0, :, head]), lse[0, head])
        out[0, placed.idle, head], lse[0, head, placed.idle] = 0, -torch.inf
        tasks += [(part, work, *heads, *task) for task in zip(work.chunks, placed.read, placed.tokens, placed.real)]
    queue: Iterator[tuple] = iter(tasks)

    def run(own: Scratch) -> None:
        for part, work, source, to_out, to_lse, chunk, read, tokens, real in queue:
            dim = source.shape[-1]
            torch.index_select(source, 0, read, out=own("query", source.dtype, read.numel(), dim))
            q = own("query", source.dtype, chunk.rows.numel(), *form.lead, part.block_q, dim)
            found = softmax_of_chunk(q, *granules, chunk, work, part, scale, form, own)
            found_out, found_lse = found[0].reshape(-1, dim), found[1].reshape(-1)
            if real is not None:
                found_out, found_lse = found_out[real], found_lse[real]
            to_out.index_copy_(0, tokens, found_out.view(to_out.dtype))
            to_lse.index_copy_(0, tokens, found_lse)

    return run


def _rows(tokens: Tensor, plan: Plan, scratch: Scratch, name: str) -> Tensor:
    """The KV rows `(1, 1, Rkv, D)` of tokens `(1, S, 1, D)`, contiguous."""
    rows = build_pyramid(tokens, plan)
    return rows if rows.is_contiguous() else scratch(name, rows.dtype, *rows.shape).copy_(rows)


def _by_16_bytes(tokens: Tensor) -> Tensor:
    """The same memory as fewer, larger elements where it divides: `index_copy_` goes element by element."""
    size = tokens.element_size()
    sizes = (tokens.shape[-1] * size, tokens.stride(0) * size, tokens.storage_offset() * size)
    return tokens if any(some % 16 for some in sizes) else tokens.view(torch.complex128)


@dataclass(frozen=True, eq=False)
class _Placed:
    """Where the query tiles of a worklist's chunks are read and written.

    Args:
        read (`list[torch.Tensor]`): per chunk int64, the token of every row; any for padding.
        tokens (`list[torch.Tensor]`): per chunk, without padding.
        real (`list[torch.Tensor | None]`): per chunk bool, the rows that hold a token; None for all.
        idle (`torch.Tensor`): tokens of query tiles that visit nothing.
    """

    read: list[Tensor]
    tokens: list[Tensor]
    real: list[Tensor | None]
    idle: Tensor


def _placed(plan: Plan, work: Worklist) -> _Placed:
    """The tokens of a worklist of a plan of one head, found once."""

    def make() -> _Placed:
        of_tiles = plan.order.reshape(-1, plan.block_q).long()
        tokens = [of_tiles[chunk.rows].flatten() for chunk in work.chunks]
        live = [some >= 0 for some in tokens]
        real = [None if bool(some.all()) else some for some in live]
        written = [some if rows is None else some[rows] for some, rows in zip(tokens, real)]
        read = [some.clamp(min=0) for some in tokens]
        idle = of_tiles[work.idle].flatten()
        return _Placed(read, written, real, idle[idle >= 0])

    return plan.memo(work, make)
