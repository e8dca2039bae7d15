"""The queries, keys and values of a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..grid import TokenGrid
from ..integration.apply import disable, find_transformers, install_processors
from ..integration.attention_inputs import AttentionInputs, RunDense
from ..integration.decision import screen, with_all_queries
from ..integration.handler import AttentionHandler
from ..integration.hook import find_hook
from ..integration.placement import Placement, in_grid_order, place


@dataclass(frozen=True)
class AttentionCall:
    """One self-attention call of a run.

    Args:
        name (`str`): qualified name of the attention module.
        layer (`int`): its number among the self-attention layers.
        step (`int`, *optional*): denoising step, from 0; None where it is unknown.
        grid ([`TokenGrid`]): where the S tokens sit.
        query (`torch.Tensor`): `(B, S, H, D)` after norm and RoPE, on the CPU, in the dtype of the model.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.
        key_mask (`torch.Tensor`, *optional*): `(B, S)` bool, False for padded keys.
    """

    name: str
    layer: int
    step: int | None
    grid: TokenGrid
    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None = None


class Recorder(AttentionHandler):
    """Records the inputs of attention; the model computes its outputs as always.

    Args:
        keep (`Callable`): from layer and step to whether a call is kept.
        pipe (`DiffusionPipeline` or `ModelMixin`): its scheduler gives the step where the pipeline does not.
    """

    def __init__(self, keep: Callable[[int, int | None], bool], pipe: Any) -> None:
        super().__init__(pipe)
        self.keep = keep
        self.calls: list[AttentionCall] = []

    def attend(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        layer, state = processor.layer, self.state
        step = None if state.step is None else state.step[0]
        if self.keep(layer.index, step):
            reason, key_mask = screen(state, layer, processor.adapter, inputs)
            placement = reason or place(state.grid, state.before, inputs.key.shape[1], tile=state.tile)
            if isinstance(placement, Placement):
                inputs_of_all, _ = with_all_queries(inputs, processor.adapter.keys_alone)
                tensors = [*inputs_of_all[:3]] + ([] if key_mask is None else [key_mask])
                tensors = (x.detach().cpu() for x in in_grid_order(*tensors, order=placement.order(tensors[0].device)))
                self.calls.append(AttentionCall(layer.name, layer.index, step, placement.grid, *tensors))
        return run_dense(inputs)


@contextmanager
def capture(pipe: Any, keep: Callable[[int, int | None], bool] | None = None) -> Iterator[list[AttentionCall]]:
    """Record the self-attention calls of a pipeline or transformer, which runs dense meanwhile.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to watch; the same processors are back afterwards.
        keep (`Callable`, *optional*): from layer and step to whether a call is kept; by default all are. A step has
            as many calls of a layer as the pipeline makes, two with classifier-free guidance.

    Returns:
        `list[AttentionCall]`: filled while the pipeline runs.

    Raises:
        TypeError: `pipe` has no supported transformer.
        ValueError: sparse attention is enabled in it.

    Example:

    ```python
    >>> with capture(pipe, keep=lambda layer, step: step == 5) as calls:
    ...     pipe(prompt)
    >>> plan = diffattn.make_plan("auto", calls[0].grid, calls[0].query, calls[0].key, layer=calls[0].layer)
    ```
    """
    transformers = find_transformers(pipe)
    if any(find_hook(transformer) for transformer in transformers):
        raise ValueError("sparse attention is enabled here, what it changes would be captured: diffattn.disable first")
    recorder = Recorder(keep or (lambda layer, step: True), pipe)
    try:
        for transformer in transformers:
            install_processors(transformer, recorder)
        yield recorder.calls
    finally:
        disable(pipe)
