"""What share of the attention a run computes, layer by layer and step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention_config import AttentionConfig
from ..integration.layer import Layer
from ..schedule import Schedule
from .summary import summary
from .trial import run_trial


def densities(
    pipe: Any,
    inputs: dict,
    config: AttentionConfig,
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    seed: int = 0,
) -> Tensor:
    """Run a video pipeline and watch its layers.

    Args:
        pipe, inputs, config, schedule, impl, seed: as in [`run_trial`].

    Returns:
        `torch.Tensor`: `(layers, steps)` float64, the share of all query-key products that the calls of a layer
        computed in a step: 1 where it was dense, NaN where it was not called. Layers of several transformers follow
        each other.

    Example:

    ```python
    >>> densities(pipe, {"prompt": "a cat"}, diffattn.AutoConfig(density=0.2)).mean(1)
    ```
    """
    columns: list[list[float]] = []
    earlier: dict[Layer, tuple[float, int]] = {}

    def after_step(step: int, steps: int) -> None:
        layers = [layer for model in summary(pipe).models for layer in model.layers]
        columns.append([_share(layer, earlier) for layer in layers])

    run_trial(pipe, inputs, config, schedule=schedule, impl=impl, seed=seed, on_step=after_step)
    return torch.tensor(columns, dtype=torch.float64).T


def _share(layer: Layer, earlier: dict[Layer, tuple[float, int]]) -> float:
    """The share that the calls of a layer computed since the last time."""
    attended, calls = earlier.get(layer, (0.0, 0))
    earlier[layer] = layer.attended, layer.calls
    return (layer.attended - attended) / (layer.calls - calls) if layer.calls > calls else float("nan")
