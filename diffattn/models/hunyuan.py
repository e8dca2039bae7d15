"""HunyuanVideo, Framepack and HunyuanImage: joint sequences, text after the visual tokens, masked by key."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, Blocks, register
from .grids import image_grid, pooled_tokens, video_grid

ATTENTION = Blocks(transformer_blocks="attn", single_transformer_blocks="attn")


def _history(model: nn.Module, inputs: dict) -> int:
    """Tokens of the earlier frames: at full size, and pooled twice and four times (FramePack, arXiv 2504.12626)."""
    pools = {"latents_clean": 1, "latents_history_2x": 2, "latents_history_4x": 4}
    given = {name: pool for name, pool in pools.items() if inputs.get(f"indices_{name}") is not None}
    return sum(pooled_tokens(inputs.get(name), (pool, 2 * pool, 2 * pool)) for name, pool in given.items())


HUNYUAN_VIDEO = register(
    Adapter("HunyuanVideoTransformer3DModel", ATTENTION, video_grid, other_tokens="after", tested=("I2V", "pipeline"))
)
FRAMEPACK = register(Adapter("HunyuanVideoFramepackTransformer3DModel", ATTENTION, video_grid, other_tokens=_history))
HUNYUAN_IMAGE = register(Adapter("HunyuanImageTransformer2DModel", ATTENTION, image_grid, other_tokens="after"))
MOTIF_VIDEO = register(Adapter("MotifVideoTransformer3DModel", ATTENTION, video_grid, other_tokens="after"))
