"""Processors that hand the attention of a model's own processor over, to a runtime for instance."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from .._compat import register_backend, register_processor
from ..kernels.handles import handle_of
from ..models.adapter import Adapter
from .calls import Call, Dense, answer, dispatched, running
from .layer import Layer
from .parallel import check_parallel, exchanged
from .runtime import Runtime
from .seams import seam


class InterceptedProcessorMixin:
    """In front of a model's processor class: while it runs, its attention is `attend`'s.

    Everything else is the model's own code: projections, norms, RoPE, IP-Adapter branches. `_attention_backend` and
    `_parallel_config` set from outside go to the original processor, whose backend runs whatever stays dense.
    """

    prefix: str
    original: Any
    adapter: Adapter
    outer_backend: Any = None

    def attend(self, call: Call, dense: Dense, ranks: int = 1) -> Tensor:
        """`(B, S, H, D)`; `dense(call)` is what the model would do, `ranks` those of context parallelism."""
        raise NotImplementedError

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
    """Attention that a runtime runs: sparse, or dense with a reason."""

    prefix = "Sparse"
    runtime: Runtime
    layer: Layer
    handle: Tensor

    def attend(self, call: Call, dense: Dense, ranks: int = 1) -> Tensor:
        return answer(self, call, dense, ranks)

    def __reduce__(self) -> tuple:
        # its class is made at run time, pickle would not find it
        return _restore, (self.original, self.runtime, self.layer, self.adapter.model)


def sparse_processor(original: Any, runtime: Runtime, layer: Layer, adapter: Adapter) -> Any:
    """A processor that does as `original` does, its attention run by `runtime`."""
    base = type(original) if adapter.processor is None else adapter.processor(type(original))
    processor = intercepted(SparseProcessorMixin, base, original, adapter, runtime=runtime, layer=layer)
    processor.__dict__["handle"] = handle_of(processor)
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
    from ..models import adapter_named

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
        outer, running.processor = running.processor, self
        try:
            return run(self, args, kwargs)
        finally:
            running.processor = outer

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
    call = Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return dispatched(running.processor, call) if _parallel_config is None else exchanged(call, _parallel_config)


BACKEND = register_backend("diffattn", _backend)
