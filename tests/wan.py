"""Real Wan classes at tiny random configurations."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

TEXT = 16


def tiny_transformer(layers: int = 3, channels: int = 16, out_channels: int = 16, **config) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=out_channels,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
        **config,
    ).eval()


def tiny_vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def text_to_video(**parts) -> WanPipeline:
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **{"transformer": tiny_transformer(), "transformer_2": None, **parts},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_to_video() -> WanImageToVideoPipeline:
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        image_processor=None,
        image_encoder=None,
        transformer=tiny_transformer(channels=36),
        transformer_2=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, steps: int = 5, guidance_scale: float = 3.0, **inputs) -> torch.Tensor:
    """Latents of a short run, 3x9x10 tokens."""
    embeds = torch.randn(2, 1, 12, TEXT, generator=torch.Generator().manual_seed(1))
    size = {"height": 144, "width": 160, "num_frames": 9}
    return pipe(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
        **{**size, **inputs},
    ).frames
