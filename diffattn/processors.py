"""Processors that hand the attention of a model's own processor over to a runtime."""

from __future__ import annotations

import functools
import threading
from typing import Any

from torch import Tensor

from ._compat import dispatch_attention_fn, register_backend
from .runtime import Layer, Runtime


class SparseProcessorMixin:
    """In front of a model's processor class: while it runs, its attention backend is diffattn.

    Everything else is the model's own code: projections, norms, RoPE, IP-Adapter branches. `_attention_backend` and
    `_parallel_config` set from outside go to the original processor, whose backend runs whatever stays dense.
    """

    original: Any
    runtime: Runtime
    layer: Layer

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


class _Running(threading.local):
    processor: SparseProcessorMixin | None = None


_running = _Running()


def sparse_processor(original: Any, runtime: Runtime, layer: Layer) -> Any:
    """A processor that does as `original` does, its attention run by `runtime`."""
    processor = object.__new__(_sparse_class(type(original)))
    for name, value in vars(original).items():
        if name not in ("_attention_backend", "_parallel_config"):
            processor.__dict__[name] = value
    processor.__dict__.update(original=original, runtime=runtime, layer=layer)
    return processor


@functools.cache
def _sparse_class(cls: type) -> type:
    # wraps keeps the signature: attention modules drop keyword arguments that a processor does not name
    @functools.wraps(cls.__call__)
    def __call__(self, *args, **kwargs):
        outer, _running.processor = _running.processor, self
        try:
            return cls.__call__(self, *args, **kwargs)
        finally:
            _running.processor = outer

    return type(f"Sparse{cls.__name__}", (SparseProcessorMixin, cls), {"__call__": __call__})


def _attention(
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
    """The backend: query, key, value `(B, S, H, D)`, dense or sparse as the runtime says."""
    processor = _running.processor
    runtime, layer = processor.runtime, processor.layer
    unserved = _unserved(query, key, dropout_p, is_causal, _parallel_config)
    plan, key_mask, reason = (None, None, unserved) if unserved else runtime.decide(layer, query, key, attn_mask)
    if plan is not None:
        return runtime.run(layer, query, key, value, plan, key_mask, scale)
    layer.count_dense(reason)
    return dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        backend=getattr(processor.original, "_attention_backend", None),
        parallel_config=_parallel_config,
    )


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


BACKEND = register_backend("diffattn", _attention)
