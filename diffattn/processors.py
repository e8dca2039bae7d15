"""Processors that hand the attention of a model's own processor over, to a runtime for instance."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import dispatch_attention_fn, register_backend, register_processor
from .compiled import compiled_attention, number_of
from .layer import Layer
from .models.adapter import Adapter
from .runtime import HELD, Runtime
from .seams import Dense, seam


class InterceptedProcessorMixin:
    """In front of a model's processor class: while it runs, its attention is `attend`'s.

    Everything else is the model's own code: projections, norms, RoPE, IP-Adapter branches. `_attention_backend` and
    `_parallel_config` set from outside go to the original processor, whose backend runs whatever stays dense.
    """

    prefix: str
    original: Any
    adapter: Adapter
    outer_backend: Any = None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dense: Dense,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        parallel_config: Any = None,
    ) -> Tensor:
        """query, key, value `(B, S, H, D)`; `dense(query, key, value, attn_mask)` is what the model would do."""
        raise NotImplementedError

    @property
    def _attention_backend(self) -> Any:
        return BACKEND if _running.processor is self else getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config


class SparseProcessorMixin(InterceptedProcessorMixin):
    """Attention that a runtime runs: sparse, or dense with a reason."""

    prefix = "Sparse"
    runtime: Runtime
    layer: Layer
    number: Tensor

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dense: Dense,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        parallel_config: Any = None,
    ) -> Tensor:
        runtime, layer = self.runtime, self.layer
        reason, key_mask = _unserved(query, key, dropout_p, is_causal, parallel_config), None
        if reason is None:
            reason, key_mask = runtime.decide(layer, query, attn_mask, self.adapter.mask)
        if torch.compiler.is_compiling():
            if reason is None:
                number, grid = self.number, [*runtime.video, runtime.before]
                return compiled_attention(query, key, value, key_mask, number, grid, scale)
            return dense(query, key, value, attn_mask)
        if reason is None:
            placement = runtime.place(query.shape[1])
            if not isinstance(placement, str):
                return runtime.run(layer, query, key, value, placement, key_mask, scale)
            reason = placement
        layer.count_dense(runtime.why_held(layer) if reason == HELD else reason)
        return dense(query, key, value, attn_mask)

    def __reduce__(self) -> tuple:
        # its class is made at run time, pickle would not find it
        return _restore, (self.original, self.runtime, self.layer, self.adapter.model)


class _Running(threading.local):
    def __init__(self) -> None:
        self.processor: InterceptedProcessorMixin | None = None


_running = _Running()


def sparse_processor(original: Any, runtime: Runtime, layer: Layer, adapter: Adapter) -> Any:
    """A processor that does as `original` does, its attention run by `runtime`."""
    base = type(original) if adapter.processor is None else adapter.processor(type(original))
    processor = intercepted(SparseProcessorMixin, base, original, adapter, runtime=runtime, layer=layer)
    processor.__dict__["number"] = number_of(processor)
    return processor


def intercepted(
    mixin: type[InterceptedProcessorMixin], base: type, original: Any, adapter: Adapter, **fields: Any
) -> Any:
    """A processor of class `base` with the attributes of `original`, its attention run by `mixin.attend`."""
    # deferred attributes of nn.Module processors are shared with the original, not copied
    processor = object.__new__(_intercepted_class(mixin, base, adapter.seam))
    for name, value in vars(original).items():
        if name not in ("_attention_backend", "_parallel_config"):
            processor.__dict__[name] = value
    processor.__dict__.update(original=original, adapter=adapter, **fields)
    return processor


def _restore(original: Any, runtime: Runtime, layer: Layer, model: str) -> Any:
    from .models import adapter_named

    return sparse_processor(original, runtime, layer, adapter_named(model))


def set_processor(attention: nn.Module, processor: Any) -> None:
    """Give an attention module a processor; Mochi's has no method for it."""
    if hasattr(attention, "set_processor"):
        attention.set_processor(processor)
    else:
        attention.processor = processor


@functools.cache
def _intercepted_class(mixin: type, cls: type, seam_name: str) -> type:
    def run(self, args: tuple, kwargs: dict) -> Any:
        if seam_name == "backend":
            return cls.__call__(self, *args, **kwargs)
        with seam(seam_name, self, BACKEND, self.attend):
            return cls.__call__(self, *args, **kwargs)

    # wraps keeps the signature: attention modules drop keyword arguments that a processor does not name
    @functools.wraps(cls.__call__)
    def __call__(self, *args, **kwargs):
        outer, _running.processor = _running.processor, self
        try:
            return run(self, args, kwargs)
        finally:
            _running.processor = outer

    made = type(f"{mixin.prefix}{cls.__name__}", (mixin, cls), {"__call__": __call__})
    register_processor(made, like=cls)
    return made


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
    processor = _running.processor

    def dense(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            backend=getattr(processor.original, "_attention_backend", None) or processor.outer_backend,
            parallel_config=_parallel_config,
        )

    return processor.attend(query, key, value, dense, attn_mask, dropout_p, is_causal, scale, _parallel_config)


def _unserved(query: Tensor, key: Tensor, dropout_p: float, is_causal: bool, parallel_config: Any) -> str | None:
    """Why this call cannot be sparse, whatever the plan."""
    if query.shape[1] != key.shape[1]:
        return "query and key sequences differ"
    if is_causal:
        return "causal attention"
    if dropout_p:
        return "attention dropout"
    if parallel_config is not None:
        return "context parallelism"
    return None


BACKEND = register_backend("diffattn", _backend)
