"""An attention processor that hands attention calls over, to be recorded or perturbed, for the time of one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..integration.attention_inputs import AttentionInputs, RunDense
from ..integration.processors import InterceptedProcessorMixin, SparseProcessorMixin, intercepted
from ..models.adapter import Adapter
from .per_thread import PerThread
from .targets import LayerCall

Act = Callable[[LayerCall], Tensor]
Wrap = Callable[[LayerCall, Act], Tensor]


class ThreadAct(PerThread):
    """What this thread does with attention calls; nothing special where it is None.

    `act` runs a call, perturbed or recorded; `wrap` decides about the calls that are run, and about their outputs.
    """

    def __init__(self) -> None:
        self.act: Act | None = None
        self.wrap: Wrap | None = None


class GuidedProcessorMixin(InterceptedProcessorMixin):
    """Hands each attention call to the `act` of the thread, which may run it as without guidance: dense or sparse."""

    prefix = "Guided"
    of_thread: ThreadAct
    users: int  # passes that have an act here now
    replaced: Any  # the processor that was here before
    sparse: SparseProcessorMixin | None  # the same if it is a sparse one

    def attend(self, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        act, wrap = self.of_thread.act, self.of_thread.wrap
        if act is None and wrap is None:
            return run_dense(inputs) if self.sparse is None else self.sparse.attend(inputs, run_dense, ranks)
        if ranks > 1:
            raise NotImplementedError("guidance in attention does not run under context parallelism")

        def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            part = inputs._replace(query=query, key=key, value=value, attn_mask=mask)
            return run_dense(part) if self.sparse is None else self.sparse.attend(part, run_dense)

        query, key, value, mask = inputs[:4]
        call = LayerCall(query, key, value, mask, self.adapter.mask, inputs.scale, attention)
        act = act or LayerCall.run
        return act(call) if wrap is None else wrap(call, act)


def guided_processor(attention: nn.Module, adapter: Adapter) -> Any:
    """In front of the processor that `attention` has now, which may be a sparse one."""
    replaced = attention.processor
    sparse = replaced if isinstance(replaced, SparseProcessorMixin) else None
    original = replaced if sparse is None else sparse.original
    base = type(original)
    if sparse is not None and adapter.processor is not None:
        base = adapter.processor(base)
    fields = {"of_thread": ThreadAct(), "users": 0, "replaced": replaced, "sparse": sparse}
    return intercepted(GuidedProcessorMixin, base, original, adapter, **fields)
