"""Processors that call torch's own attention function: a mode of this thread hands it over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .attention_inputs import AttentionInputs, RunDense


class SdpaMode(TorchFunctionMode):
    """Hands every `scaled_dot_product_attention` to `attend(inputs, run_dense)`.

    Tensors are `(B, H, S, D)` outside and `(B, S, H, D)` in [`AttentionInputs`]; `run_dense(inputs)` is what was
    meant.
    """

    def __init__(self, attend: Callable[[AttentionInputs, RunDense], Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)

        def run_dense(inputs: AttentionInputs) -> Tensor:
            query, key, value, *options = inputs
            return func(*_swapped(query, key, value), **dict(zip(inputs._fields[3:], options))).transpose(1, 2)

        inputs = AttentionInputs(*args, **kwargs)
        query, key, value = _swapped(*inputs[:3])
        return self.attend(inputs._replace(query=query, key=key, value=value), run_dense).transpose(1, 2)


def _swapped(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2) for tensor in tensors]
