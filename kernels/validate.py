"""Checks of the inputs of attention: shapes always, the contents of plans for debugging."""

from __future__ import annotations

import torch
from torch import Tensor

from .plan.plan import Plan
from .plan.tile_list import TileList

INTEGERS = (torch.int32, torch.int64)
TILE_NUMBERS = (torch.int16, *INTEGERS)


def check_inputs(query: Tensor, key: Tensor, value: Tensor, plan: Plan) -> None:
    """Raise a ValueError where shapes, dtypes or devices do not fit each other or the plan."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point (B, S, H, D), got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.shape[1] != plan.tokens:
            raise ValueError(f"{name} has {tensor.shape[1]} tokens, the plan is for {plan.tokens}")
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, query {query.dtype} on {query.device}")
    if key.shape != value.shape or key.shape[::3] != query.shape[::3] or query.shape[2] % max(key.shape[2], 1):
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} must agree in batch "
            "and head dim, and the query heads must be a multiple of the key heads"
        )
    if query.shape[-1] > 256:
        raise ValueError(f"head dim {query.shape[-1]} is more than 256")
    _check_plan(query, plan)


def _check_plan(query: Tensor, plan: Plan) -> None:
    tensors = {"order": plan.order, "q_rows": plan.order if plan.q_rows is None else plan.q_rows}
    for lists in plan.lists:
        tensors |= {f"counts of pool {lists.pool}": lists.counts, f"indices of pool {lists.pool}": lists.indices}
    for name, tensor in tensors.items():
        if tensor.device != query.device:
            raise ValueError(f"the plan is on {tensor.device} ({name}), query on {query.device}")
        for what, size, dim in (("batch", query.shape[0], 0), ("heads", query.shape[2], 1)):
            if tensor.shape[dim] not in (1, size):
                raise ValueError(f"the plan is for {what} {tensor.shape[dim]} ({name}), query has {size}")
    if plan.key_mask is not None and plan.key_mask.shape[0] not in (1, query.shape[0]):
        raise ValueError(f"key_mask is for batch {plan.key_mask.shape[0]}, query has {query.shape[0]}")


def check_contents(plan: Plan) -> None:
    """Raise if the contents of a plan are wrong; the shapes are checked when a plan is made.

    Raises:
        TypeError: a wrong dtype of indices, counts or masks.
        ValueError: counts out of range, tiles outside of their level or twice in a list, rows that are no tokens, an
            order that omits or repeats a token, weights that are not finite. The message names the tensor, the place
            and the value.
    """
    _check_rows("order", plan.order, plan.tokens)
    _check_order(plan.order, plan.tokens)
    if plan.q_rows is not None:
        _check_rows("q_rows", plan.query_rows, plan.tokens)
    for lists in plan.lists:
        _check_lists(f"lists of pool {lists.pool}", lists, plan.level_rows(lists) // lists.tile)
    if plan.post is not None:
        for name in ("scale", "weights"):
            tensor = getattr(plan.post, name)
            _check(f"post.{name}", tensor, tensor.isfinite(), "must be finite")


def _check_rows(name: str, rows: Tensor, tokens: int) -> None:
    _check_dtype(name, rows, INTEGERS)
    _check(name, rows, (rows >= -1) & (rows < tokens), f"must be tokens from 0 to {tokens - 1}, or -1 for padding")


def _check_order(order: Tensor, tokens: int) -> None:
    slots = order.where(order >= 0, tokens).long()
    rows = torch.zeros(*order.shape[:2], tokens + 1, dtype=torch.int64, device=order.device)
    rows = rows.scatter_add_(-1, slots, torch.ones_like(slots))[..., :tokens]
    if bool((rows != 1).any()):
        batch, head, token = (rows != 1).nonzero()[0].tolist()
        count = int(rows[batch, head, token])
        raise ValueError(
            f"order[{batch}, {head}] holds token {token} {count} times: it must hold each of the {tokens} tokens "
            "exactly once"
        )


def _check_lists(name: str, lists: TileList, tiles: int) -> None:
    _check_dtype(f"counts of the {name}", lists.counts, INTEGERS)
    _check_dtype(f"indices of the {name}", lists.indices, TILE_NUMBERS)
    width = lists.indices.shape[-1]
    fits = (lists.counts >= 0) & (lists.counts <= width)
    _check(f"counts of the {name}", lists.counts, fits, f"must be from 0 to {width}, the entries there are")
    live = lists.live
    inside = (lists.indices >= 0) & (lists.indices < tiles)
    _check(f"indices of the {name}", lists.indices, inside | ~live, f"must be tiles from 0 to {tiles - 1}")
    numbers = lists.indices.where(live, -1).sort(dim=-1, stable=True)
    again = torch.zeros_like(live)
    twice = (numbers.values[..., 1:] == numbers.values[..., :-1]) & (numbers.values[..., 1:] >= 0)
    again.scatter_(-1, numbers.indices[..., 1:], twice)
    _check(f"indices of the {name}", lists.indices, ~again, "must hold a tile at most once")
    if lists.partial is not None:
        _check_dtype(f"partial of the {name}", lists.partial, (torch.bool,))


def _check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")


def _check(name: str, tensor: Tensor, right: Tensor, rule: str) -> None:
    if not bool(right.all()):
        place = (~right).nonzero()[0].tolist()
        raise ValueError(f"{name} {rule}, got {tensor[tuple(place)].item()} at {place}")
