"""One plan of plans that were made for some heads each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .plan import Plan
from .tile_list import TileList


def join_heads(plans: Sequence[Plan], heads: Sequence[Sequence[int]]) -> Plan:
    """The plan in which the heads `heads[i]` do as in `plans[i]`.

    Args:
        plans (`list[Plan]`): of the same tokens, rows, tiles and pools, which no head routes to rows of its own.
        heads (`list[list[int]]`): numbers of the heads of every plan, each head from 0 exactly once.

    Raises:
        ValueError: plans that differ in what all heads of a plan share.
    """
    first = plans[0]
    _check(plans)
    sizes = [len(own) for own in heads]
    place = torch.tensor([head for own in heads for head in own]).argsort().to(first.order.device)

    def join(parts: Sequence[Tensor]) -> Tensor:
        """`(B|1, H, ...)` of tensors `(B|1, h|1, ...)`, the last dimension filled up with zeros."""
        batch, width = (max(part.shape[dim] for part in parts) for dim in (0, -1))
        filled = (torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts)
        grown = [part.expand(batch, size, *part.shape[2:]) for part, size in zip(filled, sizes)]
        return torch.cat(grown, 1).index_select(1, place)

    lists = [
        TileList(join([one.counts for one in same]), join([one.indices for one in same]), same[0].tile, same[0].pool)
        for same in zip(*(plan.lists for plan in plans))
    ]
    post = first.post
    if post is not None:
        scale, weights = (join([getattr(plan.post, name) for plan in plans]) for name in ("scale", "weights"))
        post = replace(post, scale=scale, weights=weights)
    return replace(first, lists=tuple(lists), post=post)


def _check(plans: Sequence[Plan]) -> None:
    first = plans[0]
    for plan in plans:
        if plan.q_rows is not None or plan.partial or plan.key_mask is not None:
            raise ValueError("plans with routed queries, partial tiles or key masks cannot be joined by heads")
        if _shared(plan) != _shared(first) or not _same_order(plan, first):
            raise ValueError(f"plans to join by heads must share rows, tiles and pools, got {plan} and {first}")


def _shared(plan: Plan) -> tuple:
    levels = [(lists.tile, lists.pool) for lists in plan.lists]
    return plan.tokens, plan.block_q, plan.visual, levels, plan.post and plan.post.tile


def _same_order(plan: Plan, other: Plan) -> bool:
    ours, theirs = plan.order, other.order
    alike = ours.shape == theirs.shape
    return alike and (ours is theirs or ours.device.type != "cpu" or torch.equal(ours, theirs))  # a GPU would wait
