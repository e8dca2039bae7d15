"""The plans of a method for the sequences that a model has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig
from ..grid import TokenGrid
from ..kernels.backends.dense import break_even, plan_cost
from ..kernels.plan import Plan
from .layer import Layer
from .placement import Placement, in_grid_order, place, reorder_plan

logger = logging.get_logger(__name__)


class Kept:
    """The last few results of a function, for several threads; the oldest goes first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, or `make()`."""
        with self._lock:
            if key in self._values:
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.most:
                del self._values[next(iter(self._values))]
        return value

    def values(self) -> list[Any]:
        """All that is kept now."""
        with self._lock:
            return list(self._values.values())

    def __getstate__(self) -> dict:
        return {"most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["most"])


class PlanStore:
    """Makes plans, keeps those of static methods, and knows which of them save nothing.

    Args:
        config ([`AttentionConfig`]): the method.
        impl (`str`): implementation of the kernel; with `"auto"` no plan runs that is slower than dense attention.
        say_once (`Callable`): logs a warning once.
    """

    def __init__(self, config: AttentionConfig, impl: str, say_once: Callable[[str], None]) -> None:
        self.config, self.impl, self.say_once = config, impl, say_once
        self.static = Kept(8)  # one per token grid and device, a run needs one or two
        self._places = Kept(64)
        self._verdicts = Kept(64)

    def place(self, tokens: int, grid: tuple[int, int, int], before: int, ranks: int = 1) -> Placement | str:
        """Where a sequence of so many tokens sits, or why it cannot be sparse; see [`placement.place`]."""
        at = (grid, before, tokens, ranks)
        return self._places.get(at, lambda: place(*at))

    def plan_or_reason(self, placement: Placement, layer: Layer, query: Tensor, key: Tensor) -> Plan | str:
        """The plan of a call, or why the model's dense backend is faster than it.

        What the plan computes decides, not the density asked for: text, padding and partial tiles count.
        """
        if self.impl != "auto":
            return self.plan(placement, layer, query, key)
        if not self.config.dynamic or self._fixed_density:
            # plans of one placement compute the same share in every layer: the first of them decides for all
            at = (placement, query.dtype, query.device)
            made: list[Plan] = []

            def judge() -> str | None:
                made.append(self.plan(placement, layer, query, key))
                return _why_slower(made[0], query)

            reason = self._verdicts.get(at, judge)
            return reason or (made[0] if made else self.plan(placement, layer, query, key))
        plan = self.plan(placement, layer, query, key)
        return _why_slower(plan, query) or plan

    def plan(self, placement: Placement, layer: Layer, query: Tensor, key: Tensor) -> Plan:
        """The plan of a call."""
        order = placement.order(query.device)
        with torch.no_grad():
            if self.config.dynamic:
                tensors = in_grid_order(query, key, order)
                return reorder_plan(self.config.plan(placement.grid, *tensors, layer=layer.index), order)

            def make() -> Plan:
                plan = self.config.plan(placement.grid, layer=layer.index, device=query.device)
                self._warn_if_everything(plan, placement.grid)
                return reorder_plan(plan, order)

            return self.static.get((placement, query.device), make)

    def bytes_kept(self) -> int:
        """Memory of the plans that are kept, with what is derived from them."""
        found: dict[int, int] = {}
        for plan in self.static.values():
            _note_bytes(plan, found)
        return sum(found.values())

    @property
    def _fixed_density(self) -> bool:
        return getattr(self.config, "density", None) is not None

    def _warn_if_everything(self, plan: Plan, grid: TokenGrid) -> None:
        if plan.density < 1 - 1e-9 or getattr(self.config, "density", None) == 1:
            return
        why = ": it needs more than one frame" if grid.frames == 1 else ""
        self.say_once(f"{self.config.method} attention keeps every key on {grid}, nothing is saved{why}")


def _why_slower(plan: Plan, query: Tensor) -> str | None:
    cost = plan_cost(plan)
    if cost <= break_even(query.shape[1], query.dtype, query.device.type):
        return None
    return f"the plan costs {cost:.2f} of dense attention: dense is faster"


def _note_bytes(thing: Any, found: dict[int, int]) -> None:
    """The storages of all tensors in nested dataclasses, objects and containers, by address."""
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else None
    if parts is None:
        parts = vars(thing).values() if hasattr(thing, "__dict__") and not isinstance(thing, type) else ()
    for part in parts:
        _note_bytes(part, found)
