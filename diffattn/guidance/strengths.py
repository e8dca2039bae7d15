"""How strongly each head of a layer is perturbed."""

from __future__ import annotations

from typing import Any

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
        self.whole = len(self.replaced) == len(heads)
        self._made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self.perturbed)

    @property
    def samples(self) -> int:
        """The number of rows of u; 1 if all samples have the same."""
        return self.values.shape[0]

    def heads(self) -> tuple[list[int], list[int]]:
        """The perturbed heads, and those of them with u = 1 in every sample.

        A compiled graph takes all heads alike, so that it serves whatever heads are chosen.
        """
        if torch.compiler.is_compiling() and not self.whole:
            return list(range(self.values.shape[1])), []
        return self.perturbed, self.replaced

    def weights(self, like: Tensor, heads: list[int]) -> Tensor:
        """u `(B|1, h)` of some heads, on the device and in the dtype of `like`."""
        if self.values.requires_grad or torch.compiler.is_compiling():
            return self.values[:, heads].to(like)
        at = (like.device, like.dtype)
        if at not in self._made:
            self._made[at] = self.values[:, heads].to(like)
        return self._made[at]

    def beside_others(self, samples: int, first: bool) -> Strengths:
        """The same strengths for the first (or else the last) half of a batch, and 0 for the other half."""
        own = self.values.expand(samples, -1)
        return Strengths(torch.cat([own, torch.zeros_like(own)] if first else [torch.zeros_like(own), own]))


def check_strength(strength: Any) -> None:
    """Raise unless u is a number from 0 to 1."""
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not 0 <= strength <= 1:
        raise ValueError(f"strength must be a number from 0 (unperturbed) to 1, got {strength!r}")
