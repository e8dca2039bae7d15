"""What a planner needs to know of the pools of a block: their means, and how large these are."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..attention_config import plain_cpu
from ..grid import TokenGrid
from ._constants import constant
from ._order import block_order
from ._scores import PIECE_BYTES, bytes_of, each_contiguous


@lru_cache(maxsize=16)
@plain_cpu()
def padded_rows(grid: TokenGrid, block: int, part: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Constants of a grid in the order `"nested"`, kept on `device`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: token of each row `(R,)` int32, the one before it where a row is padding,
        and ln of the tokens in every `part` rows `(R / part,)` float32, -inf where all are padding.
    """
    order, _ = block_order(grid, "nested", block)
    last = (torch.arange(len(order)) * (order >= 0)).cummax(0).values
    return order[last].to(device), (order >= 0).view(-1, part).sum(-1).float().log().to(device)


def pool_statistics(
    tensors: tuple[Tensor, ...], rows: Tensor, pools: tuple[int, ...], part: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of parts and of blocks, and the mean squared norms of the means of all pools of a block.

    The variance in the pools of a size is the first of these norms, that of pools of one, less theirs.

    Args:
        tensors (`tuple[torch.Tensor, ...]`): each `(B, S, ., D)`; their heads come out side by side.
        rows (`torch.Tensor`): `(R,)` tokens, none of them padding; R a multiple of the last of `pools`.
        pools (`tuple[int, ...]`): L sizes from 1, each a multiple of the one before; the last is the block.
        part (`int`): a multiple of the pools below it and a divisor of those above.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: means of parts `(B, R / part, H, D)` and of blocks
        `(B, N, H, D)`, and mean squared norms `(L, B, N, H)`; float32.
    """
    row_bytes = sum(tensor[:, :1].numel() * 4 for tensor in tensors)
    size = max(1, bytes_of(PIECE_BYTES, rows) // (row_bytes * pools[-1])) * pools[-1]
    tensors = each_contiguous(tensors, len(rows) > size)
    found = [_statistics(tensors, piece, pools, part) for piece in rows.split(size)]
    parts, blocks, squares = zip(*found)
    return _cat(parts, 1), _cat(blocks, 1), _cat(squares, 2)


def _statistics(tensors: tuple[Tensor, ...], rows: Tensor, pools: tuple[int, ...], part: int) -> tuple[Tensor, ...]:
    gathered = torch.cat([tensor.index_select(1, rows).float() for tensor in tensors], 2)
    means = {1: gathered.nan_to_num_(0, 0, 0)}
    sizes = sorted({*pools, part})
    for finer, size in pairwise(sizes):
        means[size] = means[finer].unflatten(1, (-1, size // finer)).mean(2)
    blocks = len(rows) // pools[-1]
    # channels first: on a CPU that is several times faster than both dims at once
    norms = [torch.linalg.vector_norm(means[size], dim=-1).unflatten(1, (blocks, -1)).norm(dim=2) for size in pools]
    share = constant(tuple(size / pools[-1] for size in pools), rows.device).view(-1, 1, 1, 1)
    return means[part], means[pools[-1]], torch.stack(norms).square_() * share


def _cat(pieces: tuple[Tensor, ...], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
