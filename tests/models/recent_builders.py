"""Transformers that came with diffusers 0.38 to 0.42, and three older ones, at tiny random configurations."""

from __future__ import annotations

import torch

from .cases import Case, lengths, normal, positions
from .image_builders import ATTN, GRID, STEP
from .video_builders import GRID as VIDEO_GRID
from .video_builders import LATENT

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
FLUX3 = {
    **HEADS,
    "in_channels": 4,
    "cond_in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 2,
    "joint_attention_dim": 16,
    "timestep_channels": 16,
    "axes_dims_rope": (4, 4, 4, 4),
}
KREA2 = {
    **HEADS,
    "in_channels": 4,
    "num_layers": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "timestep_embed_dim": 16,
    "text_hidden_dim": 16,
    "num_text_layers": 2,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
    "text_intermediate_size": 16,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "axes_dims_rope": (4, 6, 6),
}
IDEOGRAM4 = {
    **HEADS,
    "in_channels": 4,
    "num_layers": 2,
    "intermediate_size": 32,
    "adaln_dim": 8,
    "llm_features_dim": 16,
    "mrope_section": (4, 2, 2),
}
ERNIE = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_layers": 2,
    "ffn_hidden_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "text_in_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}
GLM = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "prior_vq_quantizer_codebook_size": 16,
}
FIBO2 = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "cap_feat_dim": 16,
    "injection_layer_ids": (1,),
    "perceiver_num_layers": 1,
    "min_num_gist_tokens": 4,
    "max_num_gist_tokens": 8,
    "gist_step": 4,
    "gist_min_text_len": 4,
    "gist_max_text_len": 8,
    "axes_dims": (4, 6, 6),
    "axes_lens": (16, 16, 16),
}
JOY = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "mlp_width_ratio": 1.0,
    "rope_dim_list": [4, 6, 6],
}
PRX = {
    "in_channels": 4,
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 1.0,
    "num_heads": 2,
    "depth": 2,
    "axes_dim": [8, 8],
}
NUCLEUS = {
    **HEADS,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "num_key_value_heads": 1,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "moe_enabled": False,
    "mlp_ratio": 8.0,
}
QWEN21 = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "context_in_dim": 16,
    "mlp_ratio": 1,
    "axes_dims_rope": (4, 6, 6),
}
COSMOS3 = {
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 32,
    "latent_channel": 4,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "patch_latent_dim": 16,
    "vocab_size": 32,
    "rope_axes_dim": [2, 3, 3],
}
MINIMAX = {
    **HEADS,
    "hidden_size": 32,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "ffn_dim": 32,
    "in_channels": 4,
    "audio_in_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "time_embed_hidden_dim": 16,
    "time_embed_dim": 8,
    "rope_freq_dim": 2,
}
KANDINSKY6 = {
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
    "visual_cond": False,
    "in_audio_dim": 4,
    "out_audio_dim": 4,
}
LUMINA_NEXT = {
    "sample_size": 16,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "cross_attention_dim": 16,
}
DIT = {**HEADS, "in_channels": 4, "num_layers": 2, "sample_size": 16, "num_embeds_ada_norm": 4}
HUNYUAN_DIT = {
    **HEADS,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 16,
    "hidden_size": 32,
    "num_layers": 4,
    "mlp_ratio": 1.0,
    "cross_attention_dim": 16,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 8,
    "text_len": 7,
    "text_len_t5": 5,
    "use_style_cond_and_image_meta_size": False,
}


def _flux3(reference: bool = False) -> dict:
    more = {"image_cond_hidden_states": normal(2, 20, 4), "image_cond_ids": positions(1, 4, 5, columns=4)}
    return {
        "hidden_states": normal(2, 48, 4),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP,
        "img_ids": positions(*GRID, columns=4) * 1.5,
        "txt_ids": torch.zeros(7, 4),
        **(more if reference else {}),
    }


def _krea2() -> dict:
    return {
        "hidden_states": normal(2, 48, 4),
        "encoder_hidden_states": normal(2, 7, 2, 16),
        "timestep": STEP,
        "position_ids": torch.cat((torch.zeros(7, 3), positions(*GRID))),
        "encoder_attention_mask": lengths((7, 4), 7, torch.bool),
    }


def _ideogram4() -> dict:
    text, image = torch.arange(7)[:, None].expand(7, 3), positions(*GRID).long() + 100
    segments = torch.ones(2, 55, dtype=torch.long)
    segments[1, :3] = -1  # samples are padded on the left
    role = torch.cat((torch.full((2, 7), 3), torch.full((2, 48), 2)), dim=1).where(segments > 0, 0)
    return {
        "hidden_states": normal(2, 55, 4),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 55, 16),
        "position_ids": torch.cat((text, image)).expand(2, -1, -1),
        "segment_ids": segments,
        "indicator": role,
    }


def _ernie() -> dict:
    return {
        "hidden_states": normal(2, 4, 6, 8),
        "timestep": STEP * 1000,
        "text_bth": normal(2, 7, 16),
        "text_lens": torch.tensor([7, 4]),
    }


def _glm() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "encoder_hidden_states": normal(2, 7, 16),
        "prior_token_id": torch.arange(96).view(2, 48) % 16,
        "prior_token_drop": torch.tensor([False, True]),
        "timestep": STEP * 1000,
        "target_size": torch.tensor([[96, 128]] * 2),
        "crop_coords": torch.zeros(2, 2),
    }


def _fibo2(valid: tuple[int, int] = (8, 8), reference: bool = False) -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 2, 8, 16),
        "encoder_attention_mask": lengths(valid, 8, torch.bool),
        "context_latents": [normal(2, 4, 8, 10)] if reference else None,
    }


def _joy(images: int = 1) -> dict:
    latents = normal(2, 4, *LATENT) if images == 1 else normal(2, images, 4, 1, *LATENT[1:])
    return {"hidden_states": latents, "timestep": STEP, "encoder_hidden_states": normal(2, 7, 16)}


def _joy_plus() -> dict:
    return {
        "hidden_states": normal(2, 68, 4, 1, 2, 2),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_hidden_states_mask": lengths((7, 4), 7),
        "shape_list": [[GRID, (1, 4, 5)], [GRID, (1, 3, 5)]],
    }


def _prx() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "attention_mask": lengths((7, 4), 7, torch.bool),
    }


def _nucleus() -> dict:
    return {
        "hidden_states": normal(2, 48, 16),
        "img_shapes": [GRID] * 2,
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP,
    }


def _qwen21() -> dict:
    """Text of 5, a condition image of 2 x 4, text of 3, then the image."""
    slots = [False] * 5 + [True] * 2 + [False] * 3 + [True] * 12
    return {
        "hidden_states": normal(2, 8 + 48, 4),
        "encoder_hidden_states": normal(2, 10, 16),
        "timestep": STEP,
        "img_shapes": [[(1, 2, 4), GRID]] * 2,
        "img_mask": torch.tensor([slots] * 2),
        "encoder_hidden_states_mask": lengths((10, 9), 10, torch.bool),
    }


def _cosmos3() -> dict:
    rows = torch.arange(72) + 7
    at = torch.cat((torch.arange(7)[:, None].expand(7, 3), positions(1, 1, 72)))
    return {
        "input_ids": torch.arange(7),
        "text_indexes": torch.arange(7),
        "position_ids": at.T,
        "und_len": 7,
        "sequence_length": 79,
        "vision_tokens": [normal(1, 4, *LATENT)],
        "vision_token_shapes": [VIDEO_GRID],
        "vision_sequence_indexes": rows,
        "vision_mse_loss_indexes": rows,
        "vision_timesteps": torch.full((72,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(3)],
    }


def _minimax() -> dict:
    """Text of 7, a condition image of 4 x 6, sound of 5, then the video."""
    frame = positions(1, 4, 6).double()
    frame[:, 0] = 7
    video = torch.cat([frame + torch.tensor([time, 0, 0]) for time in (0.0, 1.7, 8.3)])
    sound = torch.zeros(5, 3, dtype=torch.float64)
    sound[:, 0] = torch.arange(5)
    text = torch.arange(7.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0, 0])
    parts = (7, 24, 5, 72)
    return {
        "hidden_states": normal(1, 24 + 72, 16),
        "audio_hidden_states": normal(1, 5, 4),
        "encoder_hidden_states": normal(1, 7, 16),
        "timestep": torch.tensor([0.0, 500.0]),
        "timestep_indices": torch.tensor([0, 0, 1, 1]).repeat_interleave(torch.tensor(parts)),
        "token_tags": torch.tensor([0, 1, 2, 1]).repeat_interleave(torch.tensor(parts)),
        "position_ids": torch.cat((text, frame, sound, video)),
        "video_indices": torch.cat((torch.arange(7, 31), torch.arange(36, 108))),
        "audio_indices": torch.arange(31, 36),
        "text_indices": torch.arange(7),
    }


def _kandinsky6() -> dict:
    return {
        "hidden_states": normal(1, 3, 8, 12, 4),
        "encoder_hidden_states": normal(1, 7, 16),
        "pooled_projections": normal(1, 8),
        "timestep": STEP[:1] * 1000,
        "audio_hidden_states": normal(1, 5, 4),
    }


def _lumina_next() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_mask": lengths((7, 4), 7, torch.bool),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, 8), normal(8, 8, 8)),
        "cross_attention_kwargs": {},
    }


def _dit() -> dict:
    return {
        "hidden_states": normal(2, 4, 16, 16),
        "timestep": (STEP * 1000).long(),
        "class_labels": torch.tensor([1, 2]),
    }


def _hunyuan_dit() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timestep": STEP * 1000,
        "encoder_hidden_states": normal(2, 7, 16),
        "text_embedding_mask": lengths((7, 4), 7),
        "encoder_hidden_states_t5": normal(2, 5, 16),
        "text_embedding_mask_t5": lengths((5, 2), 5),
        "image_rotary_emb": (normal(48, 16), normal(48, 16)),
    }


FLUX3_BLOCKS = r"(mode_blocks\.image|single_transformer_blocks)\.\d+\.attn"
LAYERS = r"layers\.\d+\.attention"
DOUBLE = r"double_blocks\.\d+\.attn"
ATTN1 = r"blocks\.\d+\.attn1"
OWN_TEXT = "text that asks by itself"

RECENT = [
    Case("Flux3Transformer2DModel", FLUX3, _flux3, GRID, FLUX3_BLOCKS, others=(0, 7), before=7),
    Case(
        "Flux3Transformer2DModel",
        FLUX3,
        lambda: _flux3(True),
        GRID,
        FLUX3_BLOCKS,
        others=(0, 27),
        before=7,
        label="-Edit",
    ),
    Case("Krea2Transformer2DModel", KREA2, _krea2, GRID, ATTN, others=(7,), before=7),
    Case(
        "Ideogram4Transformer2DModel",
        IDEOGRAM4,
        _ideogram4,
        GRID,
        LAYERS,
        others=(7,),
        before=7,
        read=lambda out: out[:, 7:],
    ),
    Case("ErnieImageTransformer2DModel", ERNIE, _ernie, GRID, r"layers\.\d+\.self_attention", others=(7,)),
    Case("GlmImageTransformer2DModel", GLM, _glm, GRID, ATTN + "1", others=(7,), before=7),
    Case("BriaFibo2Transformer2DModel", FIBO2, _fibo2, GRID, LAYERS, others=(8,), before=8),
    Case(
        "BriaFibo2Transformer2DModel",
        FIBO2,
        lambda: _fibo2((8, 4), True),
        GRID,
        LAYERS,
        others=(20 + 8,),
        label="-Edit",
    ),
    Case("JoyImageEditTransformer3DModel", JOY, _joy, VIDEO_GRID, DOUBLE, others=(7,)),
    Case("JoyImageEditTransformer3DModel", JOY, lambda: _joy(3), VIDEO_GRID, DOUBLE, others=(7,), label="-Edit"),
    Case(
        "JoyImageEditPlusTransformer3DModel", JOY, _joy_plus, GRID, DOUBLE, others=(27,), read=lambda out: out[:, :48]
    ),
    Case("PRXTransformer2DModel", PRX, _prx, GRID, r"blocks\.\d+\.attention", others=(7,), before=7),
    Case("NucleusMoEImageTransformer2DModel", NUCLEUS, _nucleus, GRID, ATTN, others=(7,)),
    Case(
        "QwenImage21Transformer2DModel",
        QWEN21,
        _qwen21,
        GRID,
        ATTN,
        others=(16,),
        before=16,
        dense={OWN_TEXT: 3},
        read=lambda out: out[:, -48:],
    ),
    Case(
        "Cosmos3OmniTransformer",
        COSMOS3,
        _cosmos3,
        VIDEO_GRID,
        r"layers\.\d+\.self_attn",
        others=(7,),
        before=7,
        dense={OWN_TEXT: 1},
    ),
    Case("MiniMaxH3Transformer3DModel", MINIMAX, _minimax, VIDEO_GRID, ATTN, others=(36,), before=36),
    Case(
        "Kandinsky6Transformer3DModel",
        KANDINSKY6,
        _kandinsky6,
        VIDEO_GRID,
        r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
    ),
    Case("LuminaNextDiT2DModel", LUMINA_NEXT, _lumina_next, GRID, r"layers\.\d+\.attn1"),
    Case("DiTTransformer2DModel", DIT, _dit, (1, 8, 8), ATTN + "1"),
    Case("HunyuanDiT2DModel", HUNYUAN_DIT, _hunyuan_dit, GRID, ATTN1),
]
