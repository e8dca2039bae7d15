"""Checks of configuration fields; every message names the field and what would be right."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any


def check_choice(name: str, value: Any, known: Collection) -> None:
    """Raise unless `value` is one of the known names."""
    if not isinstance(value, (str, bool)) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


def check_size(name: str, value: Any, known: tuple[int, ...], at_least: int = 1) -> None:
    """Raise unless `value` is None or one of the known sizes that are large enough."""
    known = tuple(size for size in known if size >= at_least)
    if value is not None and (isinstance(value, bool) or value not in known):
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def check_levels(name: str, levels: Any) -> None:
    """Raise unless `levels` are powers of two, ascending from 1, at most 16."""
    if not isinstance(levels, tuple) or not levels or levels[0] != 1 or not set(levels) <= {1, 2, 4, 8, 16}:
        raise ValueError(f"{name} must be powers of 2 from 1 to 16, starting with 1, got {levels!r}")
    if list(levels) != sorted(set(levels)):
        raise ValueError(f"{name} must be ascending, each once, got {levels!r}")


def check_shares(
    name: str, values: Any, count: int, per: str = "", ordered: bool = True, low: float = 0.0, high: float = 1.0
) -> None:
    """Raise unless `values` is None or a tuple of `count` numbers in [low, high], not descending where `ordered`."""
    if values is None:
        return
    if not isinstance(values, tuple) or len(values) != count:
        raise ValueError(f"{name} must be a tuple of {count} numbers, one for each of the {per}, got {values!r}")
    for value in values:
        if not is_number(value) or not low <= value <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value!r}")
    if ordered and list(values) != sorted(values):
        raise ValueError(f"{name} must not descend: the ends of the levels are cumulative, got {values!r}")


def check_triple(name: str, value: Any, least: int = 1, length: int = 3) -> None:
    """Raise unless `value` is None or `length` integers of at least `least`."""
    if value is None:
        return
    whole = isinstance(value, tuple) and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    if not whole or len(value) != length or min(value) < least:
        raise ValueError(f"{name} must be {length} integers of at least {least}, got {value!r}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
