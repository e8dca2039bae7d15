"""Sparse or dense: the one place where that is decided, for eager runs and for compiled graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from ..grid import TokenGrid
from ..kernels.plan import Plan
from ..models.adapter import Adapter
from .attention_inputs import AttentionInputs
from .layer import Layer
from .plan_store import PlanRequest, PlanStore
from .run_state import Location, RunState

FORCED = "forced"  # `Layer.why_dense` knows the reason; graphs must not ask for it


@dataclass(frozen=True)
class Sparse:
    """Run `plan` on a sequence of `grid`, without the keys where `key_mask` `(B, S)` is False."""

    plan: Plan
    grid: TokenGrid
    key_mask: Tensor | None = None


@dataclass(frozen=True)
class Dense:
    """Run the model's own backend, and count the reason."""

    reason: str


def decide(
    plans: PlanStore, state: RunState, layer: Layer, adapter: Adapter, inputs: AttentionInputs, ranks: int = 1
) -> Sparse | Dense:
    """What becomes of one attention call.

    Args:
        plans ([`PlanStore`]): of the method.
        state ([`RunState`]): step and grid of the forward.
        layer ([`Layer`]): which asks.
        adapter ([`Adapter`]): of its model.
        inputs ([`AttentionInputs`]): of the whole sequence.
        ranks (`int`): of context parallelism.
    """
    reason, key_mask = screen(state, layer, adapter, inputs)
    if reason == FORCED:
        return Dense(layer.why_dense(state.dense_step))
    if reason is not None:
        return Dense(reason)
    ranks = ordered_ranks(adapter, ranks)
    if isinstance(ranks, str):
        return Dense(ranks)
    return decide_at(plans, layer, inputs, key_mask, Location(state.grid, state.before, state.step), ranks)


def decide_at(
    plans: PlanStore,
    layer: Layer,
    inputs: AttentionInputs,
    key_mask: Tensor | None,
    location: Location,
    ranks: int,
    rerun: bool = False,
) -> Sparse | Dense:
    """The second half of [`decide`], which compiled graphs reach inside their operator: is there a plan that pays?

    `rerun` says that a backward computes a call again, which is none of the calls of the run.
    """
    if not inputs.query.shape[0]:
        return Dense("an empty batch")
    placement = plans.place(inputs.query.shape[1], location.grid, location.before, ranks)
    if isinstance(placement, str):
        return Dense(placement)
    plan = plans.plan_or_reason(PlanRequest(placement, layer, inputs, location.step, rerun))
    return Dense(plan) if isinstance(plan, str) else Sparse(plan, placement.grid, key_mask)


def screen(
    state: RunState, layer: Layer, adapter: Adapter, inputs: AttentionInputs
) -> tuple[str | None, Tensor | None]:
    """The first half of [`decide`], which compiled graphs trace: `(None, key mask)`, or `(reason, None)`.

    All that may differ between two layers or two steps of one graph is the bool `layer.mode.dense`.
    """
    reason = _unsuitable(inputs)
    if reason is None and layer.mode.dense:
        reason = FORCED
    if reason is None and state.location is None:
        reason = state.no_grid
    if reason is None:
        reason = _intercepted()
    if reason is not None or inputs.attn_mask is None:
        return reason, None
    return state.key_mask(inputs.attn_mask, inputs.query, adapter.mask)


def ordered_ranks(adapter: Adapter, ranks: int) -> int | str:
    """`ranks` as [`Placement`] takes them, 1 for a sequence that was cut as one; or a reason to stay dense."""
    if ranks == 1 or adapter.other_tokens == "none" or adapter.parallel_split == "sequence":
        return 1
    if adapter.parallel_split == "streams":
        return ranks
    return "context parallelism of a joint sequence whose order is not known"


def _unsuitable(inputs: AttentionInputs) -> str | None:
    """Why this call cannot be sparse, whatever the plan."""
    if inputs.query.shape[1] != inputs.key.shape[1]:
        return "query and key sequences differ"
    if inputs.is_causal:
        return "causal attention"
    if inputs.dropout_p:
        return "attention dropout"
    return None


def _intercepted() -> str | None:
    """Who replaces torch's attention while it runs, and would never see ours: `LayerSkipConfig` of diffusers does."""
    for place in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(place)
        if not isinstance(mode, DeviceContext):
            return f"{type(mode).__name__} intercepts attention"
    return None
