"""The embedded model as the study runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffattn.analysis.load import load_pipeline

PROMPTS = (
    "a red circle moves right over a blue background",
    "a white square moves up over a green background",
    "a yellow triangle moves left over a black background",
)
STEPS, LAYERS = 10, 6
CALL = {"height": 128, "width": 128, "num_frames": 33, "num_inference_steps": STEPS, "guidance_scale": 3.0}


def load() -> Any:
    """The pipeline, quiet."""
    pipe = load_pipeline("tiny", "cpu", "float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def held_out_prompts(count: int) -> tuple[str, ...]:
    """Captions of combinations of shape, colour, motion and background that training never showed."""
    from examples.tiny_wan.evaluate import held_out_scenes

    return tuple(scene.caption(index) for index, scene in enumerate(held_out_scenes(count, seed=0)))


@torch.no_grad()
def run(pipe: Any, prompts: tuple[str, ...], seed: int, output_type: str = "pt", **changes: Any) -> Tensor:
    """Videos `(N, 33, 3, 128, 128)` in [0, 1] of a batch of prompts, or latents; noise of prompt i from `seed` + i."""
    noise = [torch.Generator().manual_seed(100 * seed + i) for i in range(len(prompts))]
    return pipe(list(prompts), generator=noise, output_type=output_type, **{**CALL, **changes}).frames
