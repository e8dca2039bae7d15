"""Transformers that bring a sparse pattern of their own, and the test's own attention in place of FlexAttention."""

from __future__ import annotations

import diffusers
import torch
from torch import Tensor

from .builders import case
from .cases import Case, normal
from .own_block import own_block_mask

GRID = (2, 16, 24)  # tiles of 8x8 in every frame: 12 blocks
ATTENTION = r"visual_transformer_blocks\.\d+\.self_attention"
KANDINSKY6_SR = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "time_dim": 8,
    "model_dim": 32,
    "ff_dim": 32,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
    "nabla_threshold": 0.3,
    "nabla_window": (1, 1, 3),
}
STEP = torch.tensor([500.0])


def _kandinsky5() -> dict:
    near = diffusers.Kandinsky5T2VPipeline.fast_sta_nabla(2, 2, 3, 1, 1, 3, device="cpu")
    return {
        "hidden_states": normal(1, 2, 32, 48, 4),
        "encoder_hidden_states": normal(1, 7, 16),
        "timestep": STEP,
        "pooled_projections": normal(1, 8),
        "visual_rope_pos": [torch.arange(size) for size in GRID],
        "text_rope_pos": torch.arange(7),
        "sparse_params": {"to_fractal": True, "sta_mask": near[None, None], "P": 0.3},
    }


def _kandinsky6_sr() -> dict:
    return {"hidden_states": normal(1, *GRID, 9), "timestep": STEP}


_MADE = [
    Case("Kandinsky5Transformer3DModel", case("Kandinsky5").config, _kandinsky5, GRID, ATTENTION, label="-NABLA"),
    Case("Kandinsky6SRTransformer3DModel", KANDINSKY6_SR, _kandinsky6_sr, GRID, ATTENTION),
]
NATIVE = [made for made in _MADE if hasattr(diffusers, made.model)]


def tile_by_tile() -> Tensor:
    """`(V,)`, the tokens of `GRID` in the order of the sequence."""
    frames, height, width = GRID
    token = torch.arange(frames * height * width)
    return token.view(frames, height // 8, 8, width // 8, 8).transpose(2, 3).flatten()


class ExplicitMask:
    """A backend that computes dense attention with a mask of tokens.

    Args:
        kind (`str`): `"released"`, the blocks of the block mask; `"dense"`, none; `"own block"`, that of
            `own_block_mask`.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.shares = kind, []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **_) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        mask = self._mask(attn_mask)
        self.shares.append(float(mask.double().mean()))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)

    def _mask(self, blocks) -> Tensor:
        if self.kind == "dense":
            return torch.ones(1, 1, dtype=torch.bool)
        if self.kind == "released":
            return blocks.to_dense().bool().repeat_interleave(64, -1).repeat_interleave(64, -2)
        order = tile_by_tile()
        return own_block_mask(GRID, 0, len(order))[order][:, order]
