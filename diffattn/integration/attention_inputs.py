"""What a processor asks of an attention backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class AttentionInputs(NamedTuple):
    """query, key, value `(B, S, H, D)` and options, named as diffusers' `dispatch_attention_fn` names them."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Any = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


RunDense = Callable[[AttentionInputs], Tensor]
