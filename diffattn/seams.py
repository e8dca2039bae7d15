"""How the attention inside a model's processor is reached while that processor runs, one way per `Adapter.seam`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._compat import active_backend

Attention = Callable[..., Tensor]
Dense = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


class SdpaMode(TorchFunctionMode):
    """Hands every `scaled_dot_product_attention` to `attention(query, key, value, dense, ...)`.

    Tensors are `(B, H, S, D)` outside and `(B, S, H, D)` inside; `dense(query, key, value, attn_mask)` is
    the call as it was meant.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, sdpa=func, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        *,
        sdpa: Callable[..., Tensor],
    ) -> Tensor:
        def dense(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return sdpa(*heads_first, attn_mask=attn_mask, **options).transpose(1, 2)

        inside = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out = self.attention(
            *inside,
            dense,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
        )
        return out.transpose(1, 2)


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
