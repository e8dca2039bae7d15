"""Values that depend on the order of a plan alone, kept for the orders in use: plans come and go, orders stay."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Made = TypeVar("Made")


def of_order(order: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()`, or what it gave under `key` for the same order before; safe in several threads.

    Orders are the same if they are views of all of one tensor, such as a method keeps for a grid. Those that differ
    between batch entries or heads are large and not kept.
    """
    if order.shape[:2] != (1, 1):
        return make()
    whole = order if order._base is None or order._base.shape != order.shape[-1:] else order._base
    kept = _by_order().setdefault(whole, {})
    if key not in kept:
        kept.setdefault(key, make())
    return kept[key]


@cache
def _by_order() -> WeakTensorKeyDictionary:
    """What is kept goes with the order that it is of."""
    return WeakTensorKeyDictionary()
