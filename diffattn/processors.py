"""Processors that hand the attention of a model's own processor over to a runtime."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import dispatch_attention_fn, register_backend, register_processor
from .compiled import compiled_attention
from .kernels.handles import number_of
from .layer import Layer
from .models.adapter import Adapter
from .runtime import HELD, Runtime
from .seams import seam


class SparseProcessorMixin:
    """In front of a model's processor class: while it runs, its attention is diffattn's.

    Everything else is the model's own code: projections, norms, RoPE, IP-Adapter branches. `_attention_backend` and
    `_parallel_config` set from outside go to the original processor, whose backend runs whatever stays dense.
    """

    original: Any
    runtime: Runtime
    layer: Layer
    adapter: Adapter
    number: Tensor
    outer_backend: Any = None

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

    def __reduce__(self) -> tuple:
        # its class is made at run time, pickle would not find it
        return _restore, (self.original, self.runtime, self.layer, self.adapter.model)


class _Running(threading.local):
    processor: SparseProcessorMixin | None = None


_running = _Running()


def sparse_processor(original: Any, runtime: Runtime, layer: Layer, adapter: Adapter) -> Any:
    """A processor that does as `original` does, its attention run by `runtime`."""
    base = type(original) if adapter.processor is None else adapter.processor(type(original))
    # deferred attributes of nn.Module processors are shared with the original, not copied
    processor = object.__new__(_sparse_class(base, adapter.seam))
    for name, value in vars(original).items():
        if name not in ("_attention_backend", "_parallel_config"):
            processor.__dict__[name] = value
    processor.__dict__.update(original=original, runtime=runtime, layer=layer, adapter=adapter)
    processor.__dict__["number"] = number_of(processor)
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
def _sparse_class(cls: type, seam_name: str) -> type:
    def run(self, args: tuple, kwargs: dict) -> Any:
        if seam_name == "backend":
            return cls.__call__(self, *args, **kwargs)
        with seam(seam_name, self, BACKEND, functools.partial(_attend, self)):
            return cls.__call__(self, *args, **kwargs)

    # wraps keeps the signature: attention modules drop keyword arguments that a processor does not name
    @functools.wraps(cls.__call__)
    def __call__(self, *args, **kwargs):
        outer, _running.processor = _running.processor, self
        try:
            return run(self, args, kwargs)
        finally:
            _running.processor = outer

    sparse = type(f"Sparse{cls.__name__}", (SparseProcessorMixin, cls), {"__call__": __call__})
    register_processor(sparse, like=cls)
    return sparse


def _attend(
    processor: SparseProcessorMixin,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dense: Callable[[], Tensor],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    parallel_config: Any = None,
) -> Tensor:
    """query, key, value `(B, S, H, D)`, sparse, or `dense()` as the runtime says."""
    runtime, layer = processor.runtime, processor.layer
    reason, key_mask = _unserved(query, key, dropout_p, is_causal, parallel_config), None
    if reason is None:
        reason, key_mask = runtime.decide(layer, query, attn_mask, processor.adapter.mask)
    if torch.compiler.is_compiling():
        if reason is None:
            number, grid = processor.number, [*runtime.video, runtime.before]
            return compiled_attention(query, key, value, key_mask, number, grid, scale)
        return dense()
    if reason is None:
        placement = runtime.place(query.shape[1])
        reason = placement if isinstance(placement, str) else runtime.why_not_worth(layer, query, key, placement)
        if reason is None:
            return runtime.run(layer, query, key, value, placement, key_mask, scale)
    layer.count_dense(runtime.why_held(layer) if reason == HELD else reason)
    return dense()


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

    def dense() -> Tensor:
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

    return _attend(
        processor, query, key, value, dense, attn_mask, dropout_p, is_causal, scale, parallel_config=_parallel_config
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


BACKEND = register_backend("diffattn", _backend)
