"""How the attention inside a model's processor is reached while that processor runs, one way per `Adapter.seam`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._compat import active_backend
from .calls import Call, Dense

Attention = Callable[[Call, Dense], Tensor]


class SdpaMode(TorchFunctionMode):
    """Hands every `scaled_dot_product_attention` to `attention(call, dense)`.

    Tensors are `(B, H, S, D)` outside and `(B, S, H, D)` in a [`Call`]; `dense(call)` is what was meant.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)

        def dense(call: Call) -> Tensor:
            query, key, value, *options = call
            return func(*_swapped(query, key, value), **dict(zip(Call._fields[3:], options))).transpose(1, 2)

        call = Call(*args, **kwargs)
        inside = dict(zip(Call._fields, _swapped(call.query, call.key, call.value)))
        return self.attention(call._replace(**inside), dense).transpose(1, 2)


def _swapped(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2) for tensor in tensors]


@contextmanager
def active(processor: Any, backend: Any):
    """The dispatcher's default is `backend`; the one before it runs what stays dense."""
    with active_backend(backend) as before:
        processor.__dict__["outer_backend"] = before
        yield


def seam(name: str, processor: Any, backend: Any, attention: Attention) -> AbstractContextManager:
    """What to enter around a processor: nothing where its `_attention_backend` answers for it."""
    if name == "sdpa":
        return SdpaMode(attention)
    return active(processor, backend) if name == "active" else nullcontext()
