"""Attention of the query tiles of one chunk to the keys that they visit, in plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...plan.plan import Plan
from .scratch import Scratch
from .softmax import SoftmaxForm
from .worklist import Chunk, Worklist


def softmax_of_chunk(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    chunk: Chunk,
    work: Worklist,
    plan: Plan,
    scale: float,
    form: SoftmaxForm,
    scratch: Scratch,
) -> tuple[Tensor, Tensor]:
    """Out and lse of the query tiles of a chunk, in the shapes of `form`; keys and values as granules of every run."""
    if form.scored:  # the form cuts scores by their size
        parts = [chunk]
    else:
        parts = plan.memo(("parts", chunk), lambda: _in_parts(chunk, keys[0], work.sizes.part))
    found = [_softmax_of_part(query, keys, values, part, work, plan, scale, form, scratch) for part in parts]
    return found[0] if len(found) == 1 else _merged(found)


def _in_parts(chunk: Chunk, keys: Tensor, part_bytes: int) -> list[Chunk]:
    """A long list of one query tile, cut into lists whose keys and values stay in the cache while they are used."""
    if len(chunk.visited) > 1 or len(chunk.tiles) > 1:
        return [chunk]
    visited, granule_bytes = chunk.visited[0], 2 * keys[0].numel() * keys.element_size()
    count = math.ceil(len(visited) * granule_bytes / part_bytes)
    if count <= 1:
        return [chunk]
    size = math.ceil(len(visited) / count)
    partial = (None,) * count if chunk.partial is None else chunk.partial.split(size, 1)
    # a part may lack keys even if the whole list does not
    may_lack_keys = chunk.may_lack_keys or chunk.weighted or chunk.partial is not None
    parts = zip(visited.split(size), partial)
    return [replace(chunk, visited=[some], partial=cells, may_lack_keys=may_lack_keys) for some, cells in parts]


def _merged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Out and lse over the keys of all parts: o = sum exp(lse_i - lse) o_i, lse = logsumexp lse_i."""
    outs, lses = zip(*parts)
    total = torch.stack(lses).logsumexp(0)
    shift = total.where(total > -torch.inf, 0)
    out = sum(out * (lse - shift).exp_()[..., None] for out, lse in zip(outs, lses))
    return out.to(outs[0].dtype), total


def _softmax_of_part(query, keys, values, chunk: Chunk, work, plan, scale, form, scratch) -> tuple[Tensor, Tensor]:
    k, v = (gather(part, chunk, form.lead, scratch, name) for name, part in (("k", keys), ("v", values)))
    mask = mask_of_chunk(plan, work, chunk, form.lead, scratch)
    out, lse = form.attention(query, k, v, mask, scale, scratch)
    if chunk.may_lack_keys and mask is not None:  # rows without any key give 0 and -inf
        empty = (mask == -torch.inf).all(-1)
        out.masked_fill_(empty[..., None], 0)
        lse.masked_fill_(empty, -torch.inf)
    return out, lse


def gather(sources: list[Tensor], chunk: Chunk, between: tuple[int, ...], scratch: Scratch, name: str) -> Tensor:
    """Granules `(N, G, ...)` of every run that the `n` tiles of a chunk visit: `(n, *between, L, ...)`."""
    tiles, parts = len(chunk.tiles), []
    for number, (source, index) in enumerate(zip(sources, chunk.visited)):
        if index.shape[0]:
            part = scratch((name, number), source.dtype, index.shape[0], *source.shape[1:])
            torch.index_select(source, 0, index, out=part)
            parts.append(part.view(tiles, *between, -1, *source.shape[2:]))
    if len(parts) == 1:
        return parts[0]
    dim = 1 + len(between)
    keys = sum(part.shape[dim] for part in parts)
    out = scratch(name, parts[0].dtype, *parts[0].shape[:dim], keys, *parts[0].shape[dim + 1 :])
    return torch.cat(parts, dim, out=out)


def mask_of_chunk(plan: Plan, work: Worklist, chunk: Chunk, lead: tuple[int, ...], scratch: Scratch) -> Tensor | None:
    """The addend to the scores of a chunk, `(n, *lead, 1, L)` or `(n, *lead, BQ, L)`; None for nothing."""
    mask = gather(work.bias, chunk, (*lead, 1), scratch, "bias") if chunk.weighted else None
    if chunk.partial is None:
        return mask
    shape = (len(chunk.tiles), plan.block_q, chunk.partial.shape[1] * work.runs[0].granule)
    if mask is None:
        mask = torch.zeros(shape, dtype=work.dtype, device=chunk.tiles.device)
    else:
        mask = mask.view(shape[0], 1, shape[2]).expand(shape).contiguous()
    if work.partial_cells <= work.sizes.kept_cells:
        tile, entry, hidden = plan.memo(("partial cells", chunk), lambda: _partial_cells(plan, work, chunk))
    else:
        tile, entry, hidden = _partial_cells(plan, work, chunk)
    cells = mask.view(*shape[:2], -1, work.runs[0].granule)
    cells[tile, :, entry] = cells[tile, :, entry].masked_fill_(hidden, -torch.inf)
    return mask.view(shape[0], *lead, *shape[1:])


def _partial_cells(plan: Plan, work: Worklist, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Of each partial granule of a chunk: query tile and place in its list `(P,)`, and hidden keys `(P, BQ, G)`."""
    (run,), (visited,) = work.runs, chunk.visited
    tile, entry = chunk.partial.nonzero(as_tuple=True)
    lane = torch.arange(run.granule, device=visited.device)
    granule = visited.view(chunk.partial.shape)[tile, entry] % (run.rows // run.granule)
    keys = (granule[:, None] * run.granule + lane).clamp_(max=plan.order.shape[-1] - 1)
    first = chunk.tiles[tile] % (plan.query_shape[-1] // plan.block_q) * plan.block_q
    rows = first[:, None] + torch.arange(plan.block_q, device=first.device)
    return tile, entry, ~plan.boxes.inside(rows, keys)
