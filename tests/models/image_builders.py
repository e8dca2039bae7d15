"""Image transformers at tiny random configurations: grids of one frame."""

from __future__ import annotations

import torch

from .cases import Case, lengths, normal, positions

STEP = torch.tensor([0.5, 0.5])
GRID = (1, 6, 8)
DUAL = r"(single_)?transformer_blocks\.\d+\.attn"
ATTN = r"transformer_blocks\.\d+\.attn"

FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
FLUX1 = {**FLUX, "pooled_projection_dim": 16}
FIBO = {**FLUX, "text_encoder_dim": 16}
FLUX2 = {**FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)}
SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 16,
}
LUMINA2 = {
    "sample_size": 16,
    "in_channels": 4,
    "hidden_size": 48,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": (8, 8, 8),
    "axes_lens": (64, 64, 64),
    "cap_feat_dim": 16,
}


def _flux(**more) -> dict:
    return {
        "hidden_states": normal(2, 48, 4),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP,
        "img_ids": positions(*GRID),
        "txt_ids": torch.zeros(7, 3),
        **more,
    }


def _flux1() -> dict:
    return _flux(pooled_projections=normal(2, 16))


def _kontext() -> dict:
    ids = torch.cat((positions(*GRID), positions(1, 4, 5, image=1)))
    return {**_flux1(), "hidden_states": normal(2, 68, 4), "img_ids": ids}


def _flux2(reference: bool = False) -> dict:
    ids = positions(*GRID, columns=4)
    ids = torch.cat((ids, positions(1, 4, 5, columns=4, image=10))) if reference else ids
    return {
        **_flux(txt_ids=torch.zeros(7, 4), guidance=STEP),
        "hidden_states": normal(2, len(ids), 4),
        "img_ids": ids,
    }


def _chroma(mask: bool = False) -> dict:
    keys = torch.cat((lengths((7, 4), 7, torch.bool), torch.ones(2, 48, dtype=torch.bool)), dim=1)
    return _flux(attention_mask=keys) if mask else _flux()


def _bria_fibo() -> dict:
    return _flux(text_encoder_layers=[normal(2, 7, 16) for _ in range(3)])


def _sd3() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "encoder_hidden_states": normal(2, 7, 16),
        "pooled_projections": normal(2, 16),
        "timestep": STEP * 1000,
    }


def _qwen(reference: bool = False) -> dict:
    shapes = [GRID, (1, 4, 5)] if reference else [GRID]
    return {
        "hidden_states": normal(2, 68 if reference else 48, 4),
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_hidden_states_mask": lengths((7, 4), 7),
        "timestep": STEP,
        "img_shapes": [shapes] * 2,
    }


def _z_image() -> dict:
    return {
        "x": [normal(4, 1, 12, 16) for _ in range(2)],
        "t": STEP,
        "cap_feats": [normal(7, 16), normal(40, 16)],
    }


def _hunyuan_image() -> dict:
    return {
        "hidden_states": normal(2, 4, 6, 8),
        "timestep": STEP * 1000,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_attention_mask": lengths((7, 4), 7),
    }


def _lumina2() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timestep": STEP,
        "encoder_hidden_states": normal(2, 7, 16),
        "encoder_attention_mask": lengths((7, 7), 7, torch.bool),
    }


def _hidream() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "timesteps": STEP * 1000,
        "encoder_hidden_states_t5": normal(2, 5, 16),
        "encoder_hidden_states_llama3": normal(2, 2, 4, 16),
        "pooled_embeds": normal(2, 16),
    }


def _auraflow() -> dict:
    return {"hidden_states": normal(2, 4, 12, 16), "encoder_hidden_states": normal(2, 7, 16), "timestep": STEP}


def _cogview4() -> dict:
    size = torch.tensor([[96, 128]] * 2)
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP * 1000,
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(2, 2),
    }


def _pixart() -> dict:
    return {
        "hidden_states": normal(2, 4, 12, 16),
        "encoder_hidden_states": normal(2, 7, 16),
        "timestep": STEP * 1000,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 16,
    "sample_size": 16,
}

IMAGES = [
    Case("FluxTransformer2DModel", FLUX1, _flux1, GRID, DUAL, others=(7,), before=7),
    Case("FluxTransformer2DModel", FLUX1, _kontext, GRID, DUAL, others=(27,), before=7, label="-Kontext"),
    Case("Flux2Transformer2DModel", FLUX2, _flux2, GRID, DUAL, others=(7,), before=7),
    Case("Flux2Transformer2DModel", FLUX2, lambda: _flux2(True), GRID, DUAL, others=(27,), before=7, label="-Edit"),
    Case(
        "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda: _chroma(True),
        GRID,
        DUAL,
        others=(7,),
        before=7,
    ),
    Case("BriaTransformer2DModel", FLUX, _flux, GRID, DUAL, others=(7,), before=7),
    Case(
        "BriaFiboTransformer2DModel", {**FLUX, "text_encoder_dim": 16}, _bria_fibo, GRID, DUAL, others=(7,), before=7
    ),
    Case("LongCatImageTransformer2DModel", FLUX, _flux, GRID, DUAL, others=(7,), before=7),
    Case("OvisImageTransformer2DModel", {**FLUX, "out_channels": 4}, _flux, GRID, DUAL, others=(7,), before=7),
    Case("SD3Transformer2DModel", SD3, _sd3, GRID, ATTN, others=(7,)),
    Case(
        "SD3Transformer2DModel",
        {**SD3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        _sd3,
        GRID,
        ATTN + "2?",
        others=(7, 0),
        label="-3.5",
    ),
    Case(
        "QwenImageTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        _qwen,
        GRID,
        ATTN,
        others=(7,),
        before=7,
    ),
    Case(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [256, 32, 32],
        },
        _z_image,
        GRID,
        r"layers\.\d+\.attention",
        others=(16 + 64,),
    ),
    Case(
        "HunyuanImageTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": (1, 1),
            "text_embed_dim": 16,
            "rope_axes_dim": (8, 8),
        },
        _hunyuan_image,
        GRID,
        DUAL,
        others=(7,),
    ),
    Case("Lumina2Transformer2DModel", LUMINA2, _lumina2, GRID, r"layers\.\d+\.attn", others=(7,), before=-1),
    Case(
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "caption_channels": [16, 16],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (4, 4, 8),
            "max_resolution": (16, 16),
            "llama_layers": (0, 1),
        },
        _hidream,
        GRID,
        r"(double|single)_stream_blocks\.\d+\.block\.attn1",
        others=(16 + 13,),
    ),
    Case(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        _auraflow,
        GRID,
        r"(joint|single)_transformer_blocks\.\d+\.attn",
        others=(15,),
        before=-1,
    ),
    Case(
        "CogView4Transformer2DModel",
        {**COGVIEW, "rope_axes_dim": (8, 8)},
        _cogview4,
        GRID,
        ATTN + "1",
        others=(7,),
        before=-1,
    ),
    Case("CogView3PlusTransformer2DModel", COGVIEW, _cogview4, GRID, ATTN + "1", others=(7,), before=-1),
    Case(
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "cross_attention_dim": 32,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        _pixart,
        GRID,
        ATTN + "1",
    ),
]
