"""The stock transformer as training runs it: on any token grid, and without paying for the padding of captions.

Weights trained so are the stock model's: a pipeline loaded from their folder computes the same on whole clips from
9 x 16 x 16 tokens on.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from examples.tiny_wan.latents import PATCH, positions

PADDED = 512  # tokens that WanPipeline pads captions to
Tables = tuple[Tensor, Tensor]


def rotary_tables(positions: Tensor, head_dim: int, theta: float = 10000.0) -> Tables:
    """cos and sin, (N, head_dim / 2), for (N, 3) real positions, laid out as WanRotaryPosEmbed does."""
    side = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
        angles.append(positions[:, axis : axis + 1].double() * frequencies)
    table = torch.cat(angles, 1)
    return table.cos().float(), table.sin().float()


@lru_cache(maxsize=64)
def _grid_tables(grid: tuple[int, int, int], kept: tuple[int, ...], head_dim: int, device: torch.device) -> Tables:
    places = positions(grid).unflatten(0, (grid[0], -1))[list(kept)].flatten(0, 1)
    tables = rotary_tables(places.to(device), head_dim)
    return tuple(table.repeat_interleave(2, 1)[None, :, None] for table in tables)


class StretchedPositions(nn.Module):
    """Takes the place of `WanRotaryPosEmbed`; below its native size positions lie farther apart, see `positions`.

    Latents may hold some frames of a clip only: `clip` is then (frames of the clip, those that the latents hold).
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.clip: tuple[int, tuple[int, ...]] | None = None

    def forward(self, latents: Tensor) -> Tables:
        """cos and sin `(1, S, 1, head_dim)` for latents `(B, C, T, H, W)`."""
        held, height, width = latents.shape[2:]
        frames, kept = self.clip or (held, tuple(range(held)))
        return _grid_tables((frames, height // PATCH, width // PATCH), kept, self.head_dim, latents.device)


class WordAttention:
    """A processor of cross-attention to L tokens of a caption, zero where padded, and one more zero vector.

    That one stands for the other pads: with an additive log(512 - L) it does the work of them all.
    """

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_, **__) -> Tensor:
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(encoder_hidden_states))
        rows = query, key, attn.to_v(encoder_hidden_states)
        query, key, value = (row.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for row in rows)
        counts = key.new_ones(key.shape[2])
        counts[-1] = PADDED - len(counts) + 1
        out = F.scaled_dot_product_attention(query, key, value.to(query.dtype), counts.log().to(query.dtype)[None])
        return attn.to_out[0](out.transpose(1, 2).flatten(2).type_as(hidden_states))


class TrainingForward:
    """Changes a transformer in place, and calls it."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer = transformer
        self.positions = transformer.rope = StretchedPositions(transformer.config.attention_head_dim)
        for block in transformer.blocks:
            block.attn2.set_processor(WordAttention())

    def __call__(
        self, latents: Tensor, sigma: Tensor, text: Tensor, clip: tuple[int, tuple[int, ...]] | None = None
    ) -> Tensor:
        """Velocity, fp32, of noisy `latents` (B, C, T, H, W) at levels `sigma` (B,) with `text` (B, L + 1, C)."""
        self.positions.clip = clip
        return self.transformer(latents, 1000 * sigma, text, return_dict=False)[0].float()
