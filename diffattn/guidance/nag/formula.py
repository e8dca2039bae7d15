"""The formula of normalised attention guidance."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = {"l1": 1, "l2": 2}


def normalised_guidance(
    positive: Tensor, negative: Tensor, *, scale: float, tau: float, alpha: float, norm: str = "l1"
) -> Tensor:
    """Attention outputs pushed away from those for a negative prompt (arXiv 2505.21179, Section 3).

    `Zg = s Z+ - (s - 1) Z-`; where `|Zg|` exceeds `tau |Z+|` it is scaled down to that; then
    `Z = alpha Zg + (1 - alpha) Z+`. Norms are those of a token, over all its heads.

    Args:
        positive, negative (`torch.Tensor`): `(B, S, H, D)`, outputs for the prompt and for the negative prompt,
            before the output projection.
        scale (`float`): s; 1 returns `positive`.
        tau (`float`): the largest growth of a token's norm, at least 1.
        alpha (`float`): the share of the guided output; 0 returns `positive`.
        norm (`str`, *optional*, defaults to `"l1"`): `"l1"` or `"l2"`.

    Returns:
        `torch.Tensor`: `(B, S, H, D)`, in the dtype of `positive`; computed in float32 or wider. A token of norm 0
        stays 0.
    """
    wide = torch.promote_types(positive.dtype, torch.float32)
    plus, minus = positive.to(wide), negative.to(wide)
    guided = plus + (scale - 1) * (plus - minus)
    growth = _norms(guided, norm) / tau
    guided = guided * (_norms(plus, norm) / growth.clamp(min=torch.finfo(wide).tiny)).clamp(max=1)
    return (plus + alpha * (guided - plus)).to(positive.dtype)


def _norms(states: Tensor, norm: str) -> Tensor:
    """`(B, S, 1, 1)`."""
    return torch.linalg.vector_norm(states, ORDERS[norm], dim=(2, 3), keepdim=True)
