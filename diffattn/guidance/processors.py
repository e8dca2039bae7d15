"""Attention processors for the time of one pass: they note what a layer computes, or perturb it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..integration.attention_inputs import AttentionInputs, RunDense
from ..integration.processors import InterceptedProcessorMixin, SparseProcessorMixin, intercepted
from ..models.adapter import Adapter
from .targets import AttentionCall

Act = Callable[[AttentionCall], Tensor]


class GuidedProcessorMixin(InterceptedProcessorMixin):
    """Hands each attention call to `act`, which may run it as it would have been run: densely, or by `sparse`."""

    prefix = "Guided"
    act: Act
    sparse: SparseProcessorMixin | None

    def attend(self, call: AttentionInputs, dense: RunDense, ranks: int = 1) -> Tensor:
        if ranks > 1:
            raise NotImplementedError("guidance by perturbed heads does not run under context parallelism")

        def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            part = call._replace(query=query, key=key, value=value, attn_mask=mask)
            return dense(part) if self.sparse is None else self.sparse.attend(part, dense)

        query, key, value, mask = call[:4]
        return self.act(AttentionCall(query, key, value, mask, self.adapter.mask, call.scale, attention))


def guided_processor(attention: nn.Module, adapter: Adapter, act: Act) -> Any:
    """In front of the processor that `attention` has now, which may be a sparse one."""
    current = attention.processor
    sparse = current if isinstance(current, SparseProcessorMixin) else None
    original = current if sparse is None else current.original
    base = type(original)
    if sparse is not None and adapter.processor is not None:
        base = adapter.processor(base)
    return intercepted(GuidedProcessorMixin, base, original, adapter, act=act, sparse=sparse)
