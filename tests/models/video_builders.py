"""Video transformers at tiny random configurations: two or three layers, head dim 16 or 32."""

from __future__ import annotations

import torch

from .cases import Case, lengths, normal

STEP = torch.tensor([500.0, 500.0])
GRID = (3, 4, 6)
LATENT = (3, 8, 12)  # under patches of (1, 2, 2)
BLOCKS = r"blocks\.\d+\.attn1"
DUAL = r"(single_)?transformer_blocks\.\d+\.attn"
ATTN1 = r"transformer_blocks\.\d+\.attn1"

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
VACE = {**WAN, "vace_layers": [0], "vace_in_channels": 6}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 6, 8),
}
COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 7,
}


def _wan() -> dict:
    return {"hidden_states": normal(2, 4, *LATENT), "timestep": STEP, "encoder_hidden_states": normal(2, 7, 16)}


def _vace() -> dict:
    return {
        **_wan(),
        "control_hidden_states": normal(2, 6, *LATENT),
        "control_hidden_states_scale": torch.ones(1),
    }


def _animate() -> dict:
    return {
        "hidden_states": normal(1, 12, *LATENT),
        "timestep": STEP[:1],
        "encoder_hidden_states": normal(1, 7, 16),
        "encoder_hidden_states_image": normal(1, 5, 4),
        "pose_hidden_states": normal(1, 4, 2, 8, 12),
        "face_pixel_values": normal(1, 3, 5, 16, 16),
    }


def _anyflow() -> dict:
    step = torch.full((2, 3), 500.0)
    return {
        "hidden_states": normal(2, 3, 4, 8, 12),
        "timestep": step,
        "r_timestep": step / 2,
        "encoder_hidden_states": normal(2, 7, 16),
    }


def _helios() -> dict:
    return {
        **_wan(),
        "indices_hidden_states": torch.arange(3).expand(2, -1) + 2,
        "indices_latents_history_short": torch.arange(2).expand(2, -1),
        "latents_history_short": normal(2, 4, 2, 8, 12),
    }


def _hunyuan(valid: tuple[int, ...] = (7, 4)) -> dict:
    batch = len(valid)
    return {
        "hidden_states": normal(batch, 4, *LATENT),
        "timestep": STEP[:batch],
        "encoder_hidden_states": normal(batch, 7, 16),
        "encoder_attention_mask": lengths(valid, 7),
        "pooled_projections": normal(batch, 8),
        "guidance": torch.full((batch,), 6000.0),
    }


def _framepack(valid: tuple[int, ...] = (7, 4)) -> dict:
    batch = len(valid)
    frames = torch.arange(30)
    return {
        **_hunyuan(valid),
        "image_embeds": normal(batch, 2, 16),
        "indices_latents": frames[20:23],
        "latents_clean": normal(batch, 4, 2, 8, 12),
        "indices_latents_clean": frames[:2],
        "latents_history_2x": normal(batch, 4, 2, 8, 12),
        "indices_latents_history_2x": frames[2:4],
        "latents_history_4x": normal(batch, 4, 4, 8, 12),
        "indices_latents_history_4x": frames[4:8],
    }


def _hunyuan15() -> dict:
    return {
        "hidden_states": normal(2, 4, *GRID),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_attention_mask": lengths((7, 4), 7),
        "encoder_hidden_states_2": normal(2, 5, 8),
        "encoder_attention_mask_2": lengths((2, 5), 5),
        "image_embeds": normal(2, 3, 12),
    }


def _motif() -> dict:
    return {
        "hidden_states": normal(2, 4, *LATENT),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_attention_mask": lengths((7, 4), 7),
    }


def _cogvideox() -> dict:
    return {"hidden_states": normal(2, 3, 4, 8, 12), "encoder_hidden_states": normal(2, 7, 8), "timestep": STEP}


def _cogvideox15() -> dict:
    return {
        **_cogvideox(),
        "hidden_states": normal(2, 6, 4, 8, 12),
        "image_rotary_emb": (normal(72, 16), normal(72, 16)),
    }


def _consisid() -> dict:
    return {**_cogvideox(), "id_cond": normal(2, 2), "id_vit_hidden": [normal(2, 2, 2)] * 1}


def _mochi() -> dict:
    return {
        "hidden_states": normal(2, 4, *LATENT),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP,
        "encoder_attention_mask": lengths((7, 4), 7, torch.bool),
    }


def _allegro() -> dict:
    rope = tuple((normal(size, 8), normal(size, 8)) for size in GRID)
    grids = tuple((torch.arange(72) % size)[None] for size in GRID)
    return {
        "hidden_states": normal(2, 4, *LATENT),
        "encoder_hidden_states": normal(2, 1, 7, 16),
        "timestep": STEP.long(),
        "encoder_attention_mask": lengths((7, 4), 7),
        "image_rotary_emb": (rope, grids),
    }


def _easy_animate() -> dict:
    return {"hidden_states": normal(2, 4, *LATENT), "timestep": STEP, "encoder_hidden_states": normal(2, 7, 16)}


def _ltx() -> dict:
    return {
        "hidden_states": normal(2, 72, 4),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP,
        "encoder_attention_mask": lengths((7, 4), 7),
        "num_frames": 3,
        "height": 4,
        "width": 6,
    }


def _ltx2() -> dict:
    return {
        **_ltx(),
        "audio_hidden_states": normal(2, 5, 4),
        "audio_encoder_hidden_states": normal(2, 7, 16),
        "audio_encoder_attention_mask": lengths((7, 4), 7),
        "audio_num_frames": 5,
    }


def _cosmos() -> dict:
    return {
        "hidden_states": normal(2, 4, *LATENT),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "attention_mask": lengths((7, 4), 7, torch.bool),
        "fps": 30,
    }


def _cosmos25() -> dict:
    return {**_cosmos(), "encoder_hidden_states": (normal(2, 7, 16), normal(2, 5, 8)), "attention_mask": None}


def _kandinsky() -> dict:
    return {
        "hidden_states": normal(1, 3, 8, 12, 4),
        "encoder_hidden_states": normal(1, 7, 16),
        "timestep": STEP[:1],
        "pooled_projections": normal(1, 8),
        "visual_rope_pos": [torch.arange(size) for size in GRID],
        "text_rope_pos": torch.arange(7),
    }


COSMOS = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
    "patch_size": (1, 2, 2),
    "concat_padding_mask": False,  # resizing it needs torchvision
}
IMAGE_CONTEXT = {"img_context_dim_in": 8, "img_context_num_tokens": 5, "img_context_dim_out": 32}
ANIMATE = {
    **WAN,
    "in_channels": 12,
    "latent_channels": 4,
    "image_dim": 4,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
HELIOS = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"} | {"rope_dim": (4, 6, 6)}
HISTORY = 48 + 6 + 2  # 2 frames of 4x6, 2 frames pooled into 2x3, 4 frames pooled into 1x2
LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 16,
}
LTX2 = {
    **LTX,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "rope_double_precision": False,
}

VIDEOS = [
    Case("WanTransformer3DModel", WAN, _wan, GRID, BLOCKS),
    Case(
        "WanVACETransformer3DModel",
        {**WAN, "vace_layers": [0], "vace_in_channels": 6},
        _vace,
        GRID,
        r"(vace_)?" + BLOCKS,
    ),
    Case("WanAnimateTransformer3DModel", ANIMATE, _animate, GRID, BLOCKS),
    Case("ChronoEditTransformer3DModel", {**WAN, "rope_temporal_skip_len": 8}, _wan, GRID, BLOCKS),
    Case("SkyReelsV2Transformer3DModel", WAN, _wan, GRID, BLOCKS),
    Case("AnyFlowTransformer3DModel", WAN, _anyflow, GRID, BLOCKS),
    Case("HeliosTransformer3DModel", HELIOS, _helios, GRID, BLOCKS, others=(48,), before=-1),
    Case("HunyuanVideoTransformer3DModel", HUNYUAN, _hunyuan, GRID, DUAL, others=(7,)),
    Case(
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "guidance_embeds": False, "image_condition_type": "token_replace"},
        lambda: {**_hunyuan(), "guidance": None},
        GRID,
        DUAL,
        others=(7,),
        label="-I2V",
    ),
    Case(
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        _framepack,
        GRID,
        DUAL,
        others=(HISTORY + 9,),
        before=HISTORY,
    ),
    Case(
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 8,
            "image_embed_dim": 12,
            "rope_axes_dim": (2, 6, 8),
        },
        _hunyuan15,
        GRID,
        r"transformer_blocks\.\d+\.attn",
        others=(15,),
    ),
    Case(
        "MotifVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 3,
            "num_decoder_layers": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (2, 6, 8),
            "enable_text_cross_attention_single": True,
        },
        _motif,
        GRID,
        DUAL,
        others=(7, 72),
    ),
    Case("CogVideoXTransformer3DModel", COGVIDEOX, _cogvideox, GRID, ATTN1, others=(7,), before=-1),
    Case(
        "CogVideoXTransformer3DModel",
        {**COGVIDEOX, "patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True},
        _cogvideox15,
        GRID,
        ATTN1,
        others=(7,),
        before=-1,
        label="-1.5",
    ),
    Case("ConsisIDTransformer3DModel", COGVIDEOX, _cogvideox, GRID, ATTN1, others=(7,), before=-1),
    Case(
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 7,
        },
        _mochi,
        GRID,
        ATTN1,
        others=(7, 4),
        calls=2,
    ),
    Case(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "sample_width": 12,
            "sample_height": 8,
            "sample_frames": 3,
            "caption_channels": 16,
        },
        _allegro,
        GRID,
        ATTN1,
    ),
    Case(
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "sample_width": 12,
            "sample_height": 8,
            "num_layers": 2,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
        },
        _easy_animate,
        GRID,
        ATTN1,
        others=(7,),
        before=-1,
    ),
    Case("LTXVideoTransformer3DModel", LTX, _ltx, GRID, ATTN1),
    Case("LTX2VideoTransformer3DModel", LTX2, _ltx2, GRID, ATTN1),
    Case("CosmosTransformer3DModel", COSMOS, _cosmos, GRID, ATTN1),
    Case(
        "CosmosTransformer3DModel",
        {
            **COSMOS,
            "img_context_dim_in": 8,
            "img_context_num_tokens": 5,
            "img_context_dim_out": 32,
            "extra_pos_embed_type": None,
        },
        _cosmos25,
        GRID,
        ATTN1,
        label="-2.5",
    ),
    Case(
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 8,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 6, 6),
        },
        _kandinsky,
        GRID,
        r"visual_transformer_blocks\.\d+\.self_attention",
    ),
]
