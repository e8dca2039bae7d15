"""Transformer classes of diffusers that diffattn leaves alone, and why."""

from __future__ import annotations

_SOUND = "sound: its tokens form no grid of a video or an image"
_PART_OF_UNET = "a part of UNets, over one of their maps"
_LINEAR = "its self-attention is linear: there are no products to save"

NOT_SUPPORTED = {
    "AceStepTransformer1DModel": _SOUND,
    "AnyFlowFARTransformer3DModel": "chunks of frames see earlier and smaller ones, by a mask inside of blocks",
    "DreamLiteTransformer2DModel": _PART_OF_UNET,
    "LatteTransformer3DModel": "frames attend one by one, and so do positions: no sequence is a video",
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxMusic3RVQDepthDecoder": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "OmniGenTransformer2DModel": "its text is causal, by a mask that adds to the scores",
    "PriorTransformer": "it makes embeddings, not images",
    "RFD4ProteinaTransformer": "proteins",
    "SanaTransformer2DModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
    "SanaWMLTX2RefinerTransformer3DModel": "its inputs do not tell the grid, its keys come from a rolling cache",
    "SanaWMTransformer3DModel": _LINEAR,
    "StableAudio3DiTModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "T5FilmDecoder": _SOUND,
    "Transformer2DModel": _PART_OF_UNET,
    "TransformerTemporalModel": _PART_OF_UNET,
    "WanAnimate2Transformer3DModel": "frames see a cached frame each beside the video, by a mask inside of blocks",
}
