"""Sparse attention as a weak version of the dense one: the target `"local"`."""

from __future__ import annotations

from torch import Tensor

from ..attention_config import AttentionConfig
from ..integration.layer import Layer
from ..integration.placement import Placement
from ..integration.runtime import Runtime
from ..methods import NeighborhoodConfig
from ..schedule import Schedule
from .targets import LayerCall


class LocalAttention:
    """Runs calls by a sparse method.

    Args:
        config ([`AttentionConfig`], *optional*): the method, [`NeighborhoodConfig`] by default.
    """

    def __init__(self, config: AttentionConfig | None = None) -> None:
        self._runtime = Runtime(config or NeighborhoodConfig(), Schedule(0, 0, 0), "auto")

    def __call__(self, call: LayerCall, placement: Placement, name: str, index: int) -> Tensor:
        """`(B, S, H, D)` of a call of the layer `name`, number `index`."""
        layer = Layer(name, index, dense=False)
        return self._runtime.run(layer, call.query, call.key, call.value, placement, call.key_mask(), call.scale)
