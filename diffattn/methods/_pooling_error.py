"""The error that it makes to replace the keys and values of a block by means of a few each."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ._constants import constant
from ._scores import SCORE_BYTES, bytes_of, match_heads

EDGE = 1 / 3  # where nothing is known but the mass, the error of p tokens grows with their edge, p ** (1 / 3)


def part_mass(query: Tensor, key: Tensor, ln_count: Tensor, parts: int) -> Tensor:
    """Share of the attention that blocks of queries give to blocks of keys, every part of them counted as its mean.

    Args:
        query (`torch.Tensor`): `(B, NQ * parts, H, D)` means of parts.
        key (`torch.Tensor`): `(B, NK * parts, Hkv, D)`.
        ln_count (`torch.Tensor`): `(NK * parts,)` float32, ln of the tokens in each part of the keys.
        parts (`int`): parts of a block.

    Returns:
        `torch.Tensor`: `(B, H, NQ, NK)` float32; rows sum to 1.
    """
    batch, rows, heads, dim = query.shape
    q, k = query.transpose(1, 2).flatten(0, 1), match_heads(key.transpose(1, 2), heads).flatten(0, 1)
    chunk = max(1, bytes_of(SCORE_BYTES, query) // (4 * rows * k.shape[1]))
    found = []
    for some_q, some_k in zip(q.split(chunk), k.split(chunk)):
        probs = torch.baddbmm(ln_count, some_q, some_k.mT, alpha=dim**-0.5).softmax(-1)
        found.append(probs.unflatten(-1, (-1, parts)).sum(-1).unflatten(-2, (-1, parts)).mean(-2))
    return (found[0] if len(found) == 1 else torch.cat(found)).unflatten(0, (batch, heads))


def pooling_errors(
    mass: Tensor,
    query_square: Tensor,
    key_variance: Tensor,
    value_variance: Tensor,
    density: float,
    pools: tuple[int, ...],
) -> Tensor:
    """What the output loses where a block of keys is pooled at a level, to second order in the logits.

    Args:
        mass (`torch.Tensor`): `(B, H, N, N)` float32, share of the attention of a block of queries.
        query_square (`torch.Tensor`): `(B, H, N)`, mean square of the queries of a block in a channel, times scale^2.
            The variance of logits is its product with that of the keys, as if they varied alike in all channels.
        key_variance (`torch.Tensor`): `(L, B, H, N)`, in the pools of a block, 0 for pools of one.
        value_variance (`torch.Tensor`): `(L, B, H, N)`, in the pools, 1 for all values of the head.
        density (`float`): about which the levels will be chosen.
        pools (`tuple[int, ...]`): L sizes, ascending from 1.

    Returns:
        `torch.Tensor`: `(L, B, H, N, N)` float32.
    """
    lost = torch.expm1(query_square[..., None] * (key_variance / -2)[..., None, :])  # of the mass, negative
    weighting = query_square.sqrt()[..., None] * (key_variance * value_variance).sqrt_()[..., None, :]
    uneven = lost.sub_(_mean_lost(mass, lost, density, pools)).abs_()
    return uneven.add_(weighting).mul_(mass)


def _mean_lost(mass: Tensor, lost: Tensor, density: float, pools: tuple[int, ...]) -> Tensor:
    """`(B, H, 1, 1)`, the mean of `lost` at the levels that the mass alone would choose.

    The sum of mass * p ** EDGE is least at a given mean of 1 / p where 1 / p is proportional to a power of the mass.
    """
    share = mass ** (1 / (1 + EDGE))
    share = share / -share.mean((-2, -1), keepdim=True)  # negative: the larger the share, the lower the level
    middles = tuple(-((fine * coarse) ** -0.5) / density for fine, coarse in pairwise(pools))
    level = torch.bucketize(share, constant(middles, mass.device))
    return (mass * lost.gather(0, level[None])[0]).sum((-2, -1), keepdim=True) / mass.shape[-1]
