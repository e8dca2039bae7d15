"""Sparse or dense: the one place where that is decided, for eager runs and for compiled graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._device import DeviceContext

from ..grid import TokenGrid
from ..kernels.plan import Plan
from ..models.adapter import Adapter
from .attention_inputs import AttentionInputs
from .block_masks import BlockLists, block_lists, is_block_mask
from .layer import Layer
from .native import NO_PATTERN
from .plan_store import PlanRequest, PlanStore
from .run_state import Location, RunState

FORCED = "forced"  # `Layer.why_dense` knows the reason; graphs must not ask for it


@dataclass(frozen=True)
class Sparse:
    """Run `plan` on a sequence of `grid`, without the keys where `key_mask` `(B, S)` is False.

    There is no grid where the plan is a pattern of the model itself.

    Some models have tokens that are keys alone. `inputs` have queries for these too, zeros; `queries` are the others,
    and `share` is their share of all.
    """

    plan: Plan
    grid: TokenGrid | None
    inputs: AttentionInputs
    key_mask: Tensor | None = None
    queries: slice | None = None
    share: float = 1.0


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
    found = screen_pattern(plans, state, layer, adapter, inputs)
    if isinstance(found, BlockLists):
        return Sparse(found.plan(inputs.query.shape[1]), None, inputs)
    reason, key_mask = screen(state, layer, adapter, inputs) if found is None else (found, None)
    if reason == FORCED:
        return Dense(layer.why_dense(state.dense_step))
    if reason is not None:
        return Dense(reason)
    ranks = ordered_ranks(adapter, ranks)
    if isinstance(ranks, str):
        return Dense(ranks)
    location = Location(state.grid, state.before, state.step, state.tile, state.references)
    return decide_at(plans, layer, adapter, inputs, key_mask, location, ranks)


def decide_at(
    plans: PlanStore,
    layer: Layer,
    adapter: Adapter,
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
    where = (location.grid, location.before, ranks, location.tile, location.references)
    placement = plans.place(inputs.key.shape[1], *where)
    if isinstance(placement, str):
        return Dense(placement)
    inputs, queries = with_all_queries(inputs, adapter.keys_alone)
    request = PlanRequest(placement, layer, inputs, location.step, rerun, queries)
    plan = plans.plan_or_reason(request)
    if isinstance(plan, str):
        return Dense(plan)
    return Sparse(plan, placement.grid, inputs, key_mask, queries, request.share)


def with_all_queries(inputs: AttentionInputs, keys_alone: str | None) -> tuple[AttentionInputs, slice | None]:
    """Inputs with as many queries as keys, and which of them are not zeros; None where none had to be added."""
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    if queries == keys:
        return inputs, None
    ahead = keys - queries if keys_alone == "before" else 0
    query = torch.nn.functional.pad(inputs.query, (0, 0, 0, 0, ahead, keys - queries - ahead))
    return inputs._replace(query=query), slice(ahead, ahead + queries)


def screen_pattern(
    plans: PlanStore, state: RunState, layer: Layer, adapter: Adapter, inputs: AttentionInputs
) -> BlockLists | str | None:
    """The blocks that a pattern of the model itself keeps; why it is dense; or None where a method makes the plan."""
    brought = is_block_mask(inputs.attn_mask)
    if not plans.native and (not brought or adapter.replaceable_pattern):
        return None
    if layer.mode.dense:
        return FORCED
    reason = _unsuitable(inputs, state, adapter) or _intercepted()
    if reason is not None or not brought:
        return reason or NO_PATTERN
    return block_lists(inputs.attn_mask, inputs.query.shape[1])


def screen(
    state: RunState, layer: Layer, adapter: Adapter, inputs: AttentionInputs
) -> tuple[str | None, Tensor | None]:
    """The first half of [`decide`], which compiled graphs trace: `(None, key mask)`, or `(reason, None)`.

    All that may differ between two layers or two steps of one graph is the bool `layer.mode.dense`.
    """
    reason = _unsuitable(inputs, state, adapter)
    if reason is None and layer.mode.dense:
        reason = FORCED
    if reason is None and state.location is None:
        reason = state.no_grid
    if reason is None:
        reason = _intercepted()
    if reason is not None or inputs.attn_mask is None or is_block_mask(inputs.attn_mask):
        return reason, None
    return state.key_mask(inputs.attn_mask, inputs.key, adapter.mask)


def ordered_ranks(adapter: Adapter, ranks: int) -> int | str:
    """`ranks` as [`Placement`] takes them, 1 for a sequence that was cut as one; or a reason to stay dense."""
    if ranks == 1 or adapter.parallel_split == "sequence":
        return 1
    if adapter.other_tokens == "none" and adapter.keys_alone is None:
        return 1
    if adapter.parallel_split == "streams":
        return ranks
    return "context parallelism of a joint sequence whose order is not known"


def _unsuitable(inputs: AttentionInputs, state: RunState, adapter: Adapter) -> str | None:
    """Why this call cannot be sparse, whatever the plan."""
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    if adapter.keys_alone and queries < math.prod(state.grid or ()):
        return "text that asks by itself"
    if queries != keys and not (adapter.keys_alone and queries < keys):
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
