"""Complete pipelines around the tiny transformers: no text encoder, no VAE, latents out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from .builders import case

MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])


def shifted() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@dataclass(frozen=True)
class PipelineCase:
    """A pipeline and how to call it.

    Args:
        name (`str`): pipeline class.
        transformer (`str`): case of its transformer, changed by `changes`.
        inputs (`dict`): arguments of its call.
        embeds (`dict`): shapes of the embeddings among them.
        forwards (`int`): of the transformer in every step.
        calls (`int`): attention calls of a layer in every forward.
    """

    name: str
    transformer: str
    inputs: dict
    embeds: dict
    forwards: int = 1
    calls: int = 1
    scheduler: Callable = shifted
    changes: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def build(self):
        cls = getattr(diffusers, self.name)
        made = case(self.transformer)
        transformer = type(made)(**{**vars(made), "config": {**made.config, **self.changes}}).build()
        parts = dict.fromkeys(cls._get_signature_keys(cls)[0])
        pipe = cls(**{**parts, "transformer": transformer, "scheduler": self.scheduler()})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe, steps: int = 5, **more) -> Tensor:
        torch.manual_seed(2)
        embeds = {name: torch.randn(shape) for name, shape in self.embeds.items()}
        seed = torch.Generator().manual_seed(3)
        options = {"num_inference_steps": steps, "generator": seed, "output_type": "latent", "return_dict": False}
        return pipe(**self.inputs, **embeds, **options, **more)[0]


VIDEO = {"height": 64, "width": 96, "num_frames": 9}
IMAGE = {"height": 96, "width": 128}
PROMPT = {"prompt_embeds": (1, 7, 16)}
BOTH = {**PROMPT, "negative_prompt_embeds": (1, 7, 16)}
MASKS = {"prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}

PIPELINES = [
    PipelineCase(
        "HunyuanVideoPipeline",
        "HunyuanVideo",
        {**VIDEO, "prompt_attention_mask": MASK},
        {**PROMPT, "pooled_prompt_embeds": (1, 8)},
    ),
    PipelineCase(
        "CogVideoXPipeline",
        "CogVideoX",
        VIDEO,
        {"prompt_embeds": (1, 7, 8), "negative_prompt_embeds": (1, 7, 8)},
        scheduler=CogVideoXDDIMScheduler,
    ),
    PipelineCase("LTXPipeline", "LTXVideo", {"height": 128, "width": 192, "num_frames": 17, **MASKS}, BOTH),
    PipelineCase(
        "MochiPipeline", "Mochi", {**VIDEO, "num_frames": 13, **{k: m.bool() for k, m in MASKS.items()}}, BOTH, calls=2
    ),
    PipelineCase("FluxPipeline", "Flux", IMAGE, {**PROMPT, "pooled_prompt_embeds": (1, 16)}),
    PipelineCase(
        "StableDiffusion3Pipeline",
        "SD3",
        IMAGE,
        {**BOTH, "pooled_prompt_embeds": (1, 16), "negative_pooled_prompt_embeds": (1, 16)},
    ),
    PipelineCase(
        "QwenImagePipeline",
        "QwenImage",
        {**IMAGE, "true_cfg_scale": 4.0, "prompt_embeds_mask": MASK, "negative_prompt_embeds_mask": MASK},
        BOTH,
        forwards=2,
        changes={"out_channels": 1},
    ),
]
