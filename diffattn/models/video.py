"""Further video families, each in a line or two."""

from __future__ import annotations

from .adapter import Adapter, Blocks, register
from .grids import frames_first_grid, stated_grid, video_grid

ATTENTION = Blocks(transformer_blocks="attn1")


COGVIDEOX = register(
    Adapter(
        "CogVideoXTransformer3DModel",
        ATTENTION,
        frames_first_grid,
        other_tokens="before",
        attention_call="torch",
        tested=("1.5", "pipeline"),
    )
)
CONSISID = register(
    Adapter("ConsisIDTransformer3DModel", ATTENTION, frames_first_grid, other_tokens="before", attention_call="torch")
)
# called once for every sample, with the valid text of that sample
MOCHI = register(
    Adapter(
        "MochiTransformer3DModel",
        ATTENTION,
        video_grid,
        other_tokens="after",
        attention_call="torch",
        tested=("pipeline",),
    )
)
ALLEGRO = register(Adapter("AllegroTransformer3DModel", ATTENTION, video_grid, attention_call="torch"))
EASY_ANIMATE = register(
    Adapter("EasyAnimateTransformer3DModel", ATTENTION, video_grid, other_tokens="before", attention_call="torch")
)
LTX = register(Adapter("LTXVideoTransformer3DModel", ATTENTION, stated_grid, tested=("pipeline",)))
LTX_2 = register(Adapter("LTX2VideoTransformer3DModel", ATTENTION, stated_grid))
COSMOS = register(
    Adapter("CosmosTransformer3DModel", ATTENTION, video_grid, attention_call="active_backend", tested=("2.5",))
)
