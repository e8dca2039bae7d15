"""Processors that hand the attention of a model's own processor over to a runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ._compat import register_backend, register_processor
from .calls import Call, answer, dispatched, running
from .compiled import number_of
from .layer import Layer
from .models.adapter import Adapter
from .parallel import check_parallel, exchanged
from .runtime import Runtime
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

    def __reduce__(self) -> tuple:
        # its class is made at run time, pickle would not find it
        return _restore, (self.original, self.runtime, self.layer, self.adapter.model)


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
        outer, running.processor = running.processor, self
        try:
            return run(self, args, kwargs)
        finally:
            running.processor = outer

    sparse = type(f"Sparse{cls.__name__}", (SparseProcessorMixin, cls), {"__call__": __call__})
    register_processor(sparse, like=cls)
    return sparse


def _attend(
    processor: SparseProcessorMixin, query: Tensor, key: Tensor, value: Tensor, dense: Callable[[], Tensor], **options
) -> Tensor:
    """What a seam calls: query, key, value `(B, S, H, D)`."""
    return answer(processor, Call(query, key, value, **options), dense)


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
    call = Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return dispatched(running.processor, call) if _parallel_config is None else exchanged(call, _parallel_config)


BACKEND = register_backend("diffattn", _backend)
