"""The plans of a method for the sequences that a model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig
from ..grid import TokenGrid
from ..kernels.backends.dense import break_even, plan_cost
from ..kernels.plan import Plan
from .attention_inputs import AttentionInputs
from .kept import Kept, bytes_of
from .kept_plans import KeptPlans
from .layer import Layer
from .native import NativeConfig
from .placement import ONE_TOKEN, Placement, in_grid_order, place, plan_for_queries, reorder_plan

logger = logging.get_logger(__name__)


class PlanRequest(NamedTuple):
    """One call that needs a plan.

    Args:
        placement ([`Placement`]): of its sequence.
        layer ([`Layer`]): which calls.
        inputs ([`AttentionInputs`]): of the whole sequence.
        step (`tuple[int, int]`, *optional*): denoising step, from 0, and how many there are.
        rerun (`bool`): whether a backward computes a call again, which is none of the calls of the run.
        queries (`slice`, *optional*): those that the model asks for; the others are zeros.
    """

    placement: Placement
    layer: Layer
    inputs: AttentionInputs
    step: tuple[int, int] | None = None
    rerun: bool = False
    queries: slice | None = None

    @property
    def shape(self) -> tuple:
        """What two calls have in common that may have one plan."""
        query, key = self.inputs[:2]
        return *self.place, query.shape, key.shape, query.dtype

    @property
    def place(self) -> tuple:
        """What two calls have in common that may have one static plan."""
        queries = self.queries and (self.queries.start, self.queries.stop)
        return self.placement, queries, self.inputs.query.device

    @property
    def share(self) -> float:
        """How much of all products dense attention computes."""
        tokens = self.inputs.key.shape[1]
        return 1.0 if self.queries is None else (self.queries.stop - self.queries.start) / tokens


class PlanStore:
    """Makes plans, keeps those of static methods, and those of dynamic ones for the steps that the schedule allows.

    Args:
        config ([`AttentionConfig`]): the method.
        impl (`str`): implementation of the kernel; with `"auto"` no plan runs that is slower than dense attention.
        say_once (`Callable`): logs a warning once.
        refresh (`int`, *optional*, defaults to 1): for how many steps of a run a dynamic plan is kept.
    """

    def __init__(self, config: AttentionConfig, impl: str, say_once: Callable[[str], None], refresh: int = 1) -> None:
        self.config, self.impl, self.say_once = config, impl, say_once
        self.static = Kept(8)  # one per token grid and device, a run needs one or two
        self.kept = KeptPlans(refresh if config.dynamic else 1)
        self._places = Kept(64)
        self._verdicts = Kept(64)

    @property
    def native(self) -> bool:
        """Whether the plans are the patterns that the model brings."""
        return isinstance(self.config, NativeConfig)

    def place(
        self,
        tokens: int,
        grid: tuple[int, int, int],
        before: int,
        ranks: int = 1,
        tile: tuple[int, int, int] = ONE_TOKEN,
        references: tuple[tuple[int, int, int], ...] = (),
    ) -> Placement | str:
        """Where a sequence of so many tokens sits, or why it cannot be sparse; see [`placement.place`]."""
        if references and not self.config.plans_references:
            self.say_once(f"{self.config.method} keeps every key of reference images: auto and others plan them too")
            references = ()
        at = (grid, before, tokens, ranks, tile, references)
        return self._places.get(at, lambda: place(*at))

    def plan_or_reason(self, request: PlanRequest) -> Plan | str:
        """The plan of a call, or why the model's dense backend is faster than it.

        What the plan computes decides, not the density asked for: text, padding and partial tiles count.
        """
        if self.impl != "auto":
            return self.plan(request)
        query = request.inputs.query
        if not self.config.dynamic or self._fixed_density:
            # plans of one placement compute the same share in every layer: the first of them decides for all
            at = (*request.place, query.dtype)
            made: list[Plan] = []

            def judge() -> str | None:
                made.append(self.plan(request))
                return _why_slower(made[0], query, request.share)

            reason = self._verdicts.get(at, judge)
            return reason or (made[0] if made else self.plan(request))
        plan = self.plan(request)
        return _why_slower(plan, query, request.share) or plan

    def plan(self, request: PlanRequest) -> Plan:
        """The plan of a call, in the order of its sequence."""
        with torch.no_grad():
            if not self.config.dynamic:
                return self._static_plan(request)
            if request.rerun:
                return self._dynamic_plan(request)
            return self.kept.get(request.layer, request.shape, lambda: self._dynamic_plan(request))

    def _static_plan(self, request: PlanRequest) -> Plan:
        placement, device = request.placement, request.inputs.query.device

        def make() -> Plan:
            plan = self.config.plan(placement.grid, layer=request.layer.index, device=device)
            self._warn_if_everything(plan, placement.grid)
            return plan_for_queries(reorder_plan(plan, placement.order(device)), request.queries)

        return self.static.get(request.place, make)

    def _dynamic_plan(self, request: PlanRequest) -> Plan:
        placement, (query, key, value) = request.placement, request.inputs[:3]
        order = placement.order(query.device)
        tensors = in_grid_order(query, key, *([value] if self.config.wants_value else []), order=order)
        step, steps = request.step or (None, None)
        names = dict(zip(("query", "key", "value"), tensors))
        plan = self.config.plan(placement.grid, **names, layer=request.layer.index, step=step, steps=steps)
        return plan_for_queries(reorder_plan(plan, order), request.queries)

    def bytes_kept(self) -> int:
        """Memory of the plans that are kept, with what is derived from them."""
        return bytes_of([*self.static.values(), *self.kept.values()])

    @property
    def _fixed_density(self) -> bool:
        return getattr(self.config, "density", None) is not None

    def _warn_if_everything(self, plan: Plan, grid: TokenGrid) -> None:
        if plan.density < 1 - 1e-9 or getattr(self.config, "density", None) == 1:
            return
        why = ": it needs more than one frame" if grid.frames == 1 else ""
        self.say_once(f"{self.config.method} attention keeps every key on {grid}, nothing is saved{why}")


def _why_slower(plan: Plan, query: Tensor, share: float) -> str | None:
    cost = plan_cost(plan) / share
    if cost <= break_even(query.shape[1], query.dtype, query.device.type):
        return None
    return f"the plan costs {cost:.2f} of dense attention: dense is faster"
