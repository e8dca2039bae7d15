"""Block-sparse attention in plain torch: the CPU path, and the fallback where Triton cannot run.

Query tiles are sorted by the number of keys that they visit and cut into chunks whose gathered keys and values fit the
cache. Each chunk is one batched attention call. No list is padded to the longest one, and no tensor is S x S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...plan.plan import Plan
from .chunk import gather, mask_of_chunk, softmax_of_chunk
from .scratch import Scratch
from .softmax import LOG2_E, SoftmaxForm, scaled_scores, softmax_form
from .threads import in_threads, share_of_threads
from .worklist import DEFAULT_SIZES, Chunk, Sizes, worklist

CHUNKS_PER_WORKER = 16  # at least; with fewer, threads of the earlier operations still occupy the cores


def forward(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, form: SoftmaxForm | None = None,
    sizes: Sizes = DEFAULT_SIZES,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of row tensors, differentiable in out and lse.

    Args:
        query (`torch.Tensor`): `(B, H, Rq, D)`.
        key, value (`torch.Tensor`): `(B, Hkv, Rkv, D)`, the levels of the plan one after the other.
        form ([`SoftmaxForm`], *optional*): the fastest for the device and dtype by default.
        sizes ([`Sizes`], *optional*): how much is processed at once.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: out `(B, H, Rq, D)` and lse `(B, H, Rq)` in float32 or wider.
    """
    return _TileAttention.apply(query, key, value, plan, scale, form or softmax_form(query), sizes)


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, plan, scale, form, sizes):
        query, key, value = (rows.contiguous() for rows in (query, key, value))
        out = torch.empty_like(query)
        lse = torch.empty(query.shape[:3], dtype=_wide(query.dtype), device=query.device)
        workers, each = share_of_threads(query.device)
        work = worklist(plan, query.shape[:3], key, form.scored, each, 1, sizes)
        tiles = query.view(-1, *form.lead, plan.block_q, query.shape[-1])
        out_tiles, lse_tiles = out.view_as(tiles), lse.view(tiles.shape[:-1])
        out_tiles[work.idle], lse_tiles[work.idle] = 0, -torch.inf
        keys, values = work.granules(key), work.granules(value)
        chunks = iter(work.chunks)  # shared: a free worker takes the next chunk

        def run(_: int) -> None:
            scratch = Scratch(query.device)
            for chunk in chunks:
                q = tiles.index_select(0, chunk.tiles)  # a few times faster than tiles[chunk.tiles]
                found = softmax_of_chunk(q, keys, values, chunk, work, plan, scale, form, scratch)
                out_tiles.index_copy_(0, chunk.tiles, found[0])
                lse_tiles.index_copy_(0, chunk.tiles, found[1])

        in_threads(run, workers, each, len(work.chunks) >= CHUNKS_PER_WORKER * workers)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale, ctx.sizes = plan, scale, sizes
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_lse):
        query, key, value, out, lse = ctx.saved_tensors
        plan, scale, wide = ctx.plan, ctx.scale, lse.dtype
        # each worker has its own KV heads, so that no other adds to their gradients
        workers = min(share_of_threads(query.device)[0], key.shape[0] * key.shape[1])
        each = max(1, torch.get_num_threads() // workers)
        work = worklist(plan, query.shape[:3], key, True, each, workers, ctx.sizes)
        tiles, keys, values = query.view(-1, plan.block_q, query.shape[-1]), work.granules(key), work.granules(value)
        grad_out, out = grad_out.contiguous().view_as(tiles), out.view_as(tiles)
        lse, grad_lse = lse.view(tiles.shape[:2]), grad_lse.contiguous().view(tiles.shape[:2])
        # a key is visited many times: its gradient is summed in float32
        grad_tiles = torch.zeros_like(tiles)
        grad_keys, grad_values = ([torch.zeros_like(part, dtype=wide) for part in parts] for parts in (keys, values))

        def run(share: int) -> None:
            scratch = Scratch(query.device)
            for chunk in work.chunks:
                if chunk.share == share:
                    add(chunk, scratch)

        def add(chunk: Chunk, scratch: Scratch) -> None:
            # dS = P * (dP - (rowsum(dO * O) - dLSE)), both products of which are in float32 at least
            of_rows = (tiles, out, grad_out, lse, grad_lse)
            q, o, do, total, dlse = (part.index_select(0, chunk.tiles) for part in of_rows)
            k, v = (gather(part, chunk, (), scratch, name) for name, part in (("k", keys), ("v", values)))
            empty = total == -torch.inf
            delta = ((do * o).sum(-1, dtype=wide) - dlse).masked_fill_(empty, 0)[..., None]
            lifted = -LOG2_E * total.masked_fill(empty, 0)[..., None]
            probs = scaled_scores(q.to(wide), k.to(wide), lifted, LOG2_E * scale)
            mask = mask_of_chunk(plan, work, chunk, (), scratch)
            probs = (probs if mask is None else probs.add_(mask, alpha=LOG2_E)).exp2_()
            scores = scaled_scores(do.to(wide), v.to(wide), -delta, 1.0).mul_(probs).to(k.dtype)
            grad_tiles.index_copy_(0, chunk.tiles, torch.bmm(scores, k).mul_(scale))
            _scatter_add(grad_keys, chunk, torch.bmm(scores.mT, q * scale))
            _scatter_add(grad_values, chunk, torch.bmm(probs.to(k.dtype).mT, do))

        in_threads(run, workers, each, len(work.chunks) >= CHUNKS_PER_WORKER * workers)
        grads = (torch.cat([part.view(*key.shape[:2], -1, key.shape[-1]) for part in parts], 2).to(key.dtype)
                 for parts in (grad_keys, grad_values))  # fmt: skip
        return grad_tiles.view_as(query), *grads, None, None, None, None


def _scatter_add(sources: list[Tensor], chunk: Chunk, parts: Tensor) -> None:
    """The transpose of `gather`, added to `sources`."""
    sizes = [len(index) * source.shape[1] // len(parts) for source, index in zip(sources, chunk.visited)]
    for source, index, part in zip(sources, chunk.visited, parts.split(sizes, 1)):
        source.index_add_(0, index, part.reshape(-1, *source.shape[1:]).to(source.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
