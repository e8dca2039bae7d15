"""Running a plan on the inputs of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.plan import Plan
from .attention_inputs import AttentionInputs
from .decision import Sparse
from .run_state import RunState


def run_decision(decision: Sparse, state: RunState, impl: str) -> Tensor:
    """The sparse attention that was decided on, for the queries of the model."""
    out = run_plan(state.masked(decision.plan, decision.key_mask), decision.inputs, impl)
    return out if decision.queries is None else out[:, decision.queries].contiguous()


def run_plan(plan: Plan, inputs: AttentionInputs, impl: str) -> Tensor:
    """Sparse attention `(B, S, H, D)`, under autocast in the dtype of autocast as torch's own attention is."""
    query, key, value = inputs[:3]
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return attend(query, key, value, plan, scale=inputs.scale, impl=impl)
    query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    # kernels know best what to add up in float32
    with torch.autocast(device, enabled=False):
        return attend(query, key, value, plan, scale=inputs.scale, impl=impl)
