"""How the prompt reaches a transformer: by which inputs, and by cross-attention or in the sequence of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._compat import unwrap_module
from .adapter import Blocks


@dataclass(frozen=True)
class TextInputs:
    """The text of one transformer family.

    Args:
        model (`str`): name of the diffusers class; its subclasses are meant too.
        encoded (`tuple[str | None, ...]`): which input of the transformer each output of the pipeline's
            `encode_prompt` becomes; None where it becomes none. A mask follows the tokens it belongs to.
        cross_attention (`Blocks`, *optional*): the attention modules that read the text; None where text and image
            are one sequence.
        text_first (`bool`, *optional*, defaults to `False`): whether that sequence begins with the text.
        tokenizers (`tuple[str, ...]`, *optional*): components that count the tokens of the text; the first present one
            counts.
        per_sample (`tuple[str, ...]`, *optional*): inputs that are lists with an entry for every sample.
        connect (`Callable`, *optional*): from the pipeline and the outputs of `encode_prompt` to those that `encoded`
            names, where the pipeline does more to them.
    """

    model: str
    encoded: tuple[str | None, ...] = ("encoder_hidden_states",)
    cross_attention: Blocks | None = None
    text_first: bool = False
    tokenizers: tuple[str, ...] = ("tokenizer",)
    per_sample: tuple[str, ...] = ()
    connect: Callable[[Any, tuple], tuple] | None = None

    @property
    def texts(self) -> list[tuple[str, str | None]]:
        """Names of the tokens, each with that of its mask."""
        names = [name for name in self.encoded if name is not None]
        following = [*names[1:], ""]
        return [
            (name, after if "mask" in after else None) for name, after in zip(names, following) if "mask" not in name
        ]


def _ltx2_connected(pipe: Any, encoded: tuple) -> tuple:
    """The text for the video, after the connectors of the pipeline, and its mask."""
    side = getattr(pipe.tokenizer, "padding_side", "left")
    video, _, mask = pipe.connectors(*encoded[:2], padding_side=side)
    return video, mask


_ATTN2 = {"cross_attention": Blocks(transformer_blocks="attn2")}
_WAN = {"cross_attention": Blocks(blocks="attn2")}
_MASKED = ("encoder_hidden_states", "encoder_attention_mask")
_FLUX = {"text_first": True, "tokenizers": ("tokenizer_2", "tokenizer")}

TEXTS = (
    TextInputs("WanTransformer3DModel", **_WAN),
    TextInputs("WanVACETransformer3DModel", cross_attention=Blocks(blocks="attn2", vace_blocks="attn2")),
    TextInputs("WanAnimateTransformer3DModel", **_WAN),
    TextInputs("ChronoEditTransformer3DModel", **_WAN),
    TextInputs("SkyReelsV2Transformer3DModel", **_WAN),
    TextInputs("AnyFlowTransformer3DModel", **_WAN),
    TextInputs("LTXVideoTransformer3DModel", _MASKED, **_ATTN2),
    TextInputs("LTX2VideoTransformer3DModel", _MASKED, **_ATTN2, connect=_ltx2_connected),
    TextInputs("CosmosTransformer3DModel", ("encoder_hidden_states", "attention_mask"), **_ATTN2),
    TextInputs("AllegroTransformer3DModel", _MASKED, **_ATTN2),
    TextInputs("PixArtTransformer2DModel", _MASKED, **_ATTN2),
    TextInputs("FluxTransformer2DModel", **_FLUX),
    TextInputs("Flux2Transformer2DModel", text_first=True),
    TextInputs("ChromaTransformer2DModel", ("encoder_hidden_states", None, "attention_mask"), text_first=True),
    TextInputs(
        "QwenImageTransformer2DModel",
        ("encoder_hidden_states", "encoder_hidden_states_mask"),
        text_first=True,
        per_sample=("img_shapes", "txt_seq_lens"),
    ),
    TextInputs("SD3Transformer2DModel", tokenizers=("tokenizer_3", "tokenizer")),
    TextInputs("HunyuanVideoTransformer3DModel", ("encoder_hidden_states", None, "encoder_attention_mask")),
    TextInputs("HunyuanVideo15Transformer3DModel", (*_MASKED, "encoder_hidden_states_2", "encoder_attention_mask_2")),
    TextInputs("ZImageTransformer2DModel", ("cap_feats",), per_sample=("x", "cap_feats")),
    TextInputs("CogVideoXTransformer3DModel", text_first=True),
)
_BY_MODEL = {text.model: text for text in TEXTS}


def text_inputs_for(transformer: nn.Module) -> TextInputs:
    """The text of a transformer.

    Raises:
        ValueError: how its text arrives is not known.
    """
    transformer = unwrap_module(transformer)
    found = next((_BY_MODEL[cls.__name__] for cls in type(transformer).__mro__ if cls.__name__ in _BY_MODEL), None)
    if found is None:
        raise ValueError(
            f"a negative prompt cannot reach {type(transformer).__name__}: known are {', '.join(sorted(_BY_MODEL))}"
        )
    return found
