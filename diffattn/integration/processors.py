"""Processors that hand the attention of a model's own processor to a handler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .._compat import (
    AttentionBackendName,
    dispatch_attention_fn,
    register_backend,
    register_processor,
    with_dispatcher,
)
from ..kernels.handles import handle_of
from ..models.adapter import Adapter, adapter_named
from .attention_inputs import AttentionInputs, RunDense
from .block_masks import is_block_mask
from .handler import AttentionHandler
from .layer import Layer
from .parallel import attend_whole_sequence, check_parallel
from .running import running
from .sdpa_mode import SdpaMode


class InterceptedProcessorMixin:
    """In front of a model's processor class: while it runs, its attention is `attend`'s.

    Everything else is the model's own code: projections, norms, RoPE, IP-Adapter branches. `_attention_backend` and
    `_parallel_config` set from outside go to the original processor, whose backend runs whatever stays dense.
    """

    prefix: str
    original: Any
    adapter: Adapter

    def attend(self, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        """`(B, S, H, D)`; `run_dense(inputs)` is what the model would do, `ranks` those of context parallelism."""
        raise NotImplementedError

    def attend_or_dispatch(self, inputs: AttentionInputs, ranks: int = 1) -> Tensor:
        """`attend`, where what stays dense is run by the backend that the model has."""
        backend = getattr(self.original, "_attention_backend", None)
        if is_block_mask(inputs.attn_mask):  # no other backend knows what it is
            backend = AttentionBackendName.FLEX
        return self.attend(inputs, lambda part: dispatch_attention_fn(**part._asdict(), backend=backend), ranks)

    @property
    def _attention_backend(self) -> Any:
        return BACKEND if running.processor is self else getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        check_parallel(config)
        self.original._parallel_config = config


class SparseProcessorMixin(InterceptedProcessorMixin):
    """Attention of one layer, run or watched by a handler."""

    prefix = "Sparse"
    handler: AttentionHandler
    layer: Layer
    handle: Tensor

    def attend(self, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        return self.handler.attend(self, inputs, run_dense, ranks)

    def __reduce__(self) -> tuple:
        # its class is made at run time, pickle would not find it
        return _restore, (self.original, self.handler, self.layer, self.adapter.model)


def sparse_processor(original: Any, handler: AttentionHandler, layer: Layer, adapter: Adapter) -> Any:
    """A processor that does as `original` does, its attention run by `handler`."""
    base = type(original) if adapter.processor is None else adapter.processor(type(original))
    processor = intercepted(SparseProcessorMixin, base, original, adapter, handler=handler, layer=layer)
    processor.__dict__["handle"] = handle_of(processor)
    return processor


def intercepted(
    mixin: type[InterceptedProcessorMixin], base: type, original: Any, adapter: Adapter, **fields: Any
) -> Any:
    """A processor of class `base` with the attributes of `original`, its attention run by `mixin.attend`."""
    # deferred attributes of nn.Module processors are shared with the original, not copied
    processor = object.__new__(_intercepted_class(mixin, base, type(original), adapter.attention_call))
    for name, value in vars(original).items():
        if name not in ("_attention_backend", "_parallel_config"):
            processor.__dict__[name] = value
    processor.__dict__.update(original=original, adapter=adapter, **fields)
    return processor


def _restore(original: Any, handler: AttentionHandler, layer: Layer, model: str) -> Any:
    return sparse_processor(original, handler, layer, adapter_named(model))


def set_processor(attention: nn.Module, processor: Any) -> None:
    """Give an attention module a processor; Mochi's has no method for it."""
    if hasattr(attention, "set_processor"):
        attention.set_processor(processor)
    else:
        attention.processor = processor


@functools.cache
def _intercepted_class(mixin: type, base: type, plain: type, attention_call: str) -> type:
    run = _call_through(base.__call__, attention_call)

    # wraps keeps the signature: attention modules drop keyword arguments that a processor does not name
    @functools.wraps(base.__call__)
    def __call__(self, *args, **kwargs):
        outer, running.processor = running.processor, self
        try:
            return run(self, *args, **kwargs)
        finally:
            running.processor = outer

    def __new__(cls, *args, **kwargs):
        # diffusers builds processors anew by `processor.__class__()`, around IP-Adapters: the model's plain ones
        return plain(*args, **kwargs)

    made = type(f"{mixin.prefix}{base.__name__}", (mixin, base), {"__call__": __call__, "__new__": __new__})
    register_processor(made, like=plain)
    return made


def _call_through(call: Callable, attention_call: str) -> Callable:
    """`call` of a processor, its attention handed over in the way that `Adapter.attention_call` names."""
    if attention_call == "processor_backend":  # it asks `_attention_backend`
        return call
    if attention_call == "active_backend":
        return with_dispatcher(call, _dispatch)

    def run(self, *args, **kwargs):
        with SdpaMode(self.attend):
            return call(self, *args, **kwargs)

    return run


def _dispatch(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return dispatch_attention_fn(query, key, value, *args, **{**kwargs, "backend": BACKEND})


def _backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
) -> Tensor:
    """What diffusers' dispatcher calls: query, key, value `(B, S, H, D)`."""
    inputs = AttentionInputs(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if _parallel_config is None:
        return running.processor.attend_or_dispatch(inputs)
    return attend_whole_sequence(inputs, _parallel_config)


BACKEND = register_backend("diffattn", _backend)
