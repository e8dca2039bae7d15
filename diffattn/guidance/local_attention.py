"""Sparse attention as a weak version of the dense one: the target `"local"`."""

from __future__ import annotations

from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig
from ..integration.attention_inputs import AttentionInputs
from ..integration.execute import run_plan
from ..integration.layer import Layer
from ..integration.placement import Placement
from ..integration.plan_store import PlanRequest, PlanStore
from ..methods import NeighborhoodConfig
from .targets import LayerCall

logger = logging.get_logger(__name__)


class LocalAttention:
    """Runs calls by a sparse method.

    Args:
        config ([`AttentionConfig`], *optional*): the method, [`NeighborhoodConfig`] by default.
    """

    def __init__(self, config: AttentionConfig | None = None) -> None:
        self._plans = PlanStore(config or NeighborhoodConfig(), "auto", logger.warning)

    def __call__(self, call: LayerCall, placement: Placement, name: str, index: int) -> Tensor:
        """`(B, S, H, D)` of a call of the layer `name`, number `index`."""
        inputs = AttentionInputs(call.query, call.key, call.value, scale=call.scale)
        plan = self._plans.plan(PlanRequest(placement, Layer(name, index, dense=False), inputs))
        key_mask = call.key_mask()
        if key_mask is not None:
            plan = plan.with_key_mask(key_mask)
        return run_plan(plan, inputs, "auto")
