"""Attention processors for the time of one pass: they note what a layer computes, or perturb it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..models.adapter import Adapter
from ..processors import Dense, InterceptedProcessorMixin, SparseProcessorMixin, intercepted
from .targets import AttentionCall

Act = Callable[[AttentionCall], Tensor]


class GuidedProcessorMixin(InterceptedProcessorMixin):
    """Hands each attention call to `act`, which may run it as it would have been run: densely, or by `sparse`."""

    prefix = "Guided"
    act: Act
    sparse: SparseProcessorMixin | None

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
        if parallel_config is not None:
            raise NotImplementedError("guidance by perturbed heads does not run under context parallelism")

        def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            if self.sparse is None:
                return dense(query, key, value, mask)
            return self.sparse.attend(query, key, value, dense, mask, dropout_p, is_causal, scale)

        return self.act(AttentionCall(query, key, value, attn_mask, self.adapter.mask, scale, attention))


def guided_processor(attention: nn.Module, adapter: Adapter, act: Act) -> Any:
    """In front of the processor that `attention` has now, which may be a sparse one."""
    current = attention.processor
    sparse = current if isinstance(current, SparseProcessorMixin) else None
    original = current if sparse is None else current.original
    base = type(original)
    if sparse is not None and adapter.processor is not None:
        base = adapter.processor(base)
    return intercepted(GuidedProcessorMixin, base, original, adapter, act=act, sparse=sparse)
