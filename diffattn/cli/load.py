"""Loading a pipeline by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..assets import tiny_wan
from .errors import CommandError, user_errors

TINY = "tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(model: str, device: str, dtype: str) -> Any:
    """The pipeline of a hub id or folder, `"tiny"` for the embedded one."""
    from diffusers import DiffusionPipeline

    if dtype not in DTYPES:
        raise CommandError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = tiny_wan() if model == TINY else model
    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        raise CommandError(f"{folder} is no pipeline folder: it holds no model_index.json")
    with user_errors(OSError, ValueError, RuntimeError):
        return DiffusionPipeline.from_pretrained(folder, dtype=DTYPES[dtype]).to(device)


def check_frames(pipe: Any, frames: int | None) -> None:
    """Raise where the VAE cannot make this number of frames; the pipeline would round it silently."""
    stride = getattr(pipe, "vae_scale_factor_temporal", 1)
    if frames is not None and (frames - 1) % stride:
        below = frames - (frames - 1) % stride
        raise CommandError(f"frames must be {below} or {below + stride} (1 + a multiple of {stride}), not {frames}")
