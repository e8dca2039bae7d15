"""How strongly each head of a layer is perturbed."""

from __future__ import annotations

import torch
from torch import Tensor


class Strengths:
    """u of the heads of one layer.

    Args:
        values (`torch.Tensor`): `(B, H)`, one row per sample, or `(1, H)` for all samples alike, from 0 to 1. With
            `requires_grad` all heads take part and gradients reach it, also where it is 0.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        heads = range(values.shape[1])
        if values.requires_grad:
            self.perturbed, self.replaced = list(heads), []
        else:
            at = values.cpu()
            self.perturbed = [head for head in heads if at[:, head].any()]
            self.replaced = [head for head in heads if (at[:, head] == 1).all()]
        self._made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self.perturbed)

    @property
    def samples(self) -> int:
        """Rows of u; 1 where all samples are alike."""
        return self.values.shape[0]

    def weights(self, like: Tensor) -> Tensor:
        """u `(B|1, h)` of the perturbed heads, on the device and in the dtype of `like`."""
        if self.values.requires_grad:
            return self.values.to(like)
        at = (like.device, like.dtype)
        if at not in self._made:
            self._made[at] = self.values[:, self.perturbed].to(like)
        return self._made[at]

    def beside_others(self, samples: int, first: bool) -> Strengths:
        """The same strengths for the first, or else the last, half of a batch, and 0 for the other half."""
        own = self.values.expand(samples, -1)
        return Strengths(torch.cat([own, torch.zeros_like(own)] if first else [torch.zeros_like(own), own]))
