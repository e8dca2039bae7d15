"""Loading a pipeline by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..assets import tiny_wan
from .errors import CommandError, user_errors

TINY = "tiny"
TINY_DEFAULTS = {"height": 128, "width": 128, "num_frames": 33, "num_inference_steps": 20, "guidance_scale": 3.0}
TINY_FPS = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(model: str, device: str, dtype: str) -> Any:
    """The pipeline of a hub id or folder, `"tiny"` for the embedded one."""
    from diffusers import DiffusionPipeline

    from .._compat import DTYPE

    if dtype not in DTYPES:
        raise CommandError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = tiny_wan() if model == TINY else model
    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        raise CommandError(f"{folder} is no pipeline folder: it holds no model_index.json")
    with user_errors(OSError, ValueError, RuntimeError):
        pipe = DiffusionPipeline.from_pretrained(folder, **{DTYPE: DTYPES[dtype]}).to(device)
    if torch.device(device).type == "cpu" and hasattr(pipe, "vae"):
        _prefer_fast_convolutions(pipe.vae)
    return pipe


def _prefer_fast_convolutions(vae: torch.nn.Module) -> None:
    # torch's 3-D convolution of a single clip is several times slower on a CPU in the other layout
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def check_frames(pipe: Any, frames: int | None) -> None:
    """Raise where the VAE cannot produce this number of frames; the pipeline would round it silently."""
    stride = getattr(pipe, "vae_scale_factor_temporal", 1)
    if frames is not None and (frames - 1) % stride:
        below = frames - (frames - 1) % stride
        raise CommandError(f"frames must be {below} or {below + stride} (1 + a multiple of {stride}), not {frames}")


def device_and_dtype(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Device and dtype, by default the GPU in bfloat16 if there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype or ("float32" if device == "cpu" else "bfloat16")


def default_fps(model: str) -> int:
    """Frames per second of the videos of a model, if not given."""
    return TINY_FPS if model == TINY else 16
