"""One head straight from tokens to tokens, in plain torch: what inference on a CPU takes where heads are long.

Beside the result only the keys and values of one head are copied, into memory that the next head uses again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .part import part_of
from .plan import Plan
from .rows import build_pyramid
from .scratch import Scratch
from .torch_softmax import softmax_form
from .torch_tiles import softmax_of_chunk
from .worklist import Chunk, Worklist, worklist


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
    works = [worklist(part, (1, 1, _tokens(part).numel()), keys, form.scored) for part in parts]
    granules = works[0].granules(keys), works[0].granules(values)
    for head, (part, work) in enumerate(zip(parts, works)):
        idle = _tokens(part)[work.idle].flatten()
        idle = idle[idle >= 0]
        out[0, idle, head], lse[0, head, idle] = 0, -torch.inf
    chunks: Iterator[tuple[int, Plan, Worklist, Chunk]] = iter(
        [(head, part, work, chunk) for head, (part, work) in enumerate(zip(parts, works)) for chunk in work.chunks]
    )

    def run(own: Scratch) -> None:
        for head, part, work, chunk in chunks:
            tokens = _tokens(part).index_select(0, chunk.rows).flatten()
            padded = part.order.numel() > part.tokens
            q = own("q", query.dtype, len(chunk.rows), *form.lead, part.block_q, query.shape[-1])
            at = tokens.clamp(min=0) if padded else tokens
            torch.index_select(query[0, :, head], 0, at, out=q.view(-1, query.shape[-1]))
            found = softmax_of_chunk(q, *granules, chunk, work, part, scale, form, own)
            found_out, found_lse = found[0].reshape(-1, out.shape[-1]), found[1].reshape(-1)
            if padded:
                real = tokens >= 0
                tokens, found_out, found_lse = tokens[real], found_out[real], found_lse[real]
            out[0, :, head].index_copy_(0, tokens, found_out)
            lse[0, head].index_copy_(0, tokens, found_lse)

    return run


def _rows(tokens: Tensor, plan: Plan, scratch: Scratch, name: str) -> Tensor:
    """The KV rows `(1, 1, Rkv, D)` of tokens `(1, S, 1, D)`, contiguous."""
    rows = build_pyramid(tokens, plan)
    return rows if rows.is_contiguous() else scratch(name, rows.dtype, *rows.shape).copy_(rows)


def _tokens(plan: Plan) -> Tensor:
    """`(NQ, BQ)` int64, the tokens of every query tile of a plan of one head, -1 for padding."""
    at = "tokens of tiles"
    if at not in plan._cache:
        plan._cache[at] = plan.order.reshape(-1, plan.block_q).long()
    return plan._cache[at]
