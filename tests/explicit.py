"""Attention written out as matrices, put under an unchanged model: the oracle of perturbed heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Matrices:
    """One attention call in float64: query, key `(B, H, S, D)`, keys that are seen `(B|1, H|1, S|1, S)`, A."""

    query: Tensor
    key: Tensor
    seen: Tensor
    scale: float
    probs: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Matrices:
        query, key = query.double(), key.double()
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        seen = torch.ones(1, 1, 1, key.shape[-2], dtype=torch.bool) if mask is None else mask
        return cls(query, key, seen, scale, softmax(scale * query @ key.mT, seen))


def softmax(scores: Tensor, seen: Tensor) -> Tensor:
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def identity(call: Matrices) -> Tensor:
    return torch.eye(call.key.shape[-2], dtype=torch.float64)


def uniform(call: Matrices) -> Tensor:
    return softmax(torch.zeros_like(call.probs), call.seen)


def seg(call: Matrices) -> Tensor:
    valid = call.seen.expand(*call.probs.shape)[:, :, :1].double()
    mean = valid @ call.query / valid.sum(-1, keepdim=True)
    return softmax(call.scale * mean @ call.key.mT, call.seen[:, :, :1]).expand_as(call.probs)


def image_block(first: int, last: int) -> Callable[[Matrices], Tensor]:
    """Visual rows see themselves and the other tokens, as diffusers masks it for SD3."""

    def probs(call: Matrices) -> Tensor:
        tokens = call.key.shape[-2]
        image = torch.zeros(tokens, dtype=torch.bool)
        image[first:last] = True
        cut = image[:, None] & image & ~torch.eye(tokens, dtype=torch.bool)
        return softmax(call.scale * call.query @ call.key.mT, call.seen & ~cut)

    return probs


def interpolate(
    strengths: Tensor, target: Callable[[Matrices], Tensor], rows: slice = slice(None)
) -> Callable[[Matrices], Tensor]:
    """`(1 - u) A + u A'` in the heads and rows that are meant, u `(B|1, H)`."""

    def probs(call: Matrices) -> Tensor:
        weight = torch.zeros(call.probs.shape[:3], dtype=torch.float64)
        weight[:, :, rows] = strengths.double()[..., None]
        return torch.lerp(call.probs, target(call).expand_as(call.probs), weight[..., None])

    return probs


class ExplicitAttention(TorchFunctionMode):
    """Runs the attention of some layers as `A' V`.

    Args:
        model (`nn.Module`): that runs within.
        changes (`dict[str, Callable]`): from the name of an attention module to what makes its matrix.
    """

    def __init__(self, model: nn.Module, changes: dict[str, Callable[[Matrices], Tensor]]) -> None:
        super().__init__()
        self.model, self.changes, self.layer, self.calls = model, changes, None, 0

    def __enter__(self):
        self.handles = []
        for name in self.changes:
            module = self.model.get_submodule(name)
            self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            self.handles.append(module.register_forward_hook(lambda *_: self._enter(None)))
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def _enter(self, layer: str | None) -> None:
        self.layer = layer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention or self.layer is None:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(self, query, key, value, attn_mask=None, scale=None, **options) -> Tensor:
        self.calls += 1
        probs = self.changes[self.layer](Matrices.of(query, key, attn_mask, scale))
        return (probs @ value.double()).to(value)
