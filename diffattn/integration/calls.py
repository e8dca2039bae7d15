"""One attention call of a model's processor: sparse, or dense on the model's own backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._compat import dispatch_attention_fn
from ..models.adapter import Adapter
from .compiled import compiled_attention
from .runtime import HELD


class Call(NamedTuple):
    """What a processor asks for: query, key, value `(B, S, H, D)` and options, as diffusers' dispatcher names them."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


Dense = Callable[[Call], Tensor]


class _Running(threading.local):
    """The processor that runs in this thread; set from the start, so that graphs need no guard for its absence."""

    def __init__(self) -> None:
        self.processor: Any = None


running = _Running()


def answer(processor: Any, call: Call, dense: Dense, ranks: int = 1) -> Tensor:
    """`(B, S, H, D)`: sparse, or `dense(call)`, as the runtime says.

    Args:
        processor (`SparseProcessorMixin`): who calls.
        call ([`Call`]): over the whole sequence.
        dense (`Callable`): the call as it was meant.
        ranks (`int`, *optional*, defaults to 1): of context parallelism, by which a joint sequence is out of order.
    """
    runtime, layer = processor.runtime, processor.layer
    reason, key_mask = _unserved(call), None
    if reason is None:
        reason, key_mask = runtime.decide(layer, call.query, call.attn_mask, processor.adapter.mask)
    if reason is None and ranks > 1:
        reason, ranks = shares_of(processor.adapter, ranks)
    if torch.compiler.is_compiling():
        if reason is None:
            grid = [*runtime.video, runtime.before, ranks]
            return compiled_attention(call.query, call.key, call.value, key_mask, processor.handle, grid, call.scale)
        return dense(call)
    if reason is None:
        placement = runtime.place(call.query.shape[1], runtime.video, runtime.before, ranks)
        reason = placement if isinstance(placement, str) else runtime.why_not_worth(layer, *call[:2], placement)
        if reason is None:
            return runtime.run(layer, *call[:3], placement, key_mask, call.scale)
    layer.count_dense(runtime.why_held(layer) if reason == HELD else reason)
    return dense(call)


def dispatched(processor: Any, call: Call, ranks: int = 1) -> Tensor:
    """The processor's own attention, what stays dense run by the backend that the model has."""
    backend = getattr(processor.original, "_attention_backend", None) or processor.outer_backend
    return processor.attend(call, lambda call: dispatch_attention_fn(**call._asdict(), backend=backend), ranks)


def shares_of(adapter: Adapter, ranks: int) -> tuple[str | None, int]:
    """`(None, ranks)` as [`Placement`] takes it, 1 for a sequence cut as one; or a reason to stay dense."""
    if adapter.others == "none" or adapter.shards == "whole":
        return None, 1
    if adapter.shards == "streams":
        return None, ranks
    return "context parallelism of a joint sequence whose order is not known", 1


def _unserved(call: Call) -> str | None:
    """Why this call cannot be sparse, whatever the plan."""
    if call.query.shape[1] != call.key.shape[1]:
        return "query and key sequences differ"
    if call.is_causal:
        return "causal attention"
    if call.dropout_p:
        return "attention dropout"
    return None
