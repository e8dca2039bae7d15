"""`diffattn generate`: a prompt becomes a video file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..analysis.errors import user_errors
from ..analysis.load import TINY, check_frames, default_fps, device_and_dtype, load_pipeline
from ..analysis.summary import Summary, versions
from ..analysis.summary import summary as make_summary
from ..integration.apply import enable
from .guidance_options import (
    Heads,
    Nag,
    NagScale,
    Preset,
    Scale,
    Strength,
    check_heads,
    check_nag,
    guide_away,
    guide_with,
)
from .output import check_output, sidecar_path, write_video
from .settings import Attention, attention, pipeline_options


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 to write; a .json goes beside it.")],
    negative_prompt: Annotated[str, typer.Option(help="What the video should not show.")] = "",
    model: Annotated[str, typer.Option(help="Hub id or pipeline folder; 'tiny' is the embedded model.")] = TINY,
    method: Annotated[str, typer.Option(help="Attention method, 'dense', or a folder of saved settings.")] = "auto",
    density: Annotated[float | None, typer.Option(help="Share of the products between visual tokens, 0 to 1.")] = None,
    dense_start: Annotated[float, typer.Option(help="Dense first steps: a share below 1, or a count.")] = 0.2,
    dense_end: Annotated[float, typer.Option(help="Dense last steps: a share below 1, or a count.")] = 0.0,
    dense_layers: Annotated[int, typer.Option(help="First layers that stay dense.")] = 0,
    impl: Annotated[str, typer.Option(help="auto, torch, triton or reference.")] = "auto",
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own default if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the video.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second; 8 for the embedded model, else 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 1 is off.")] = None,
    heads: Heads = None,
    guidance_preset: Preset = None,
    perturbation_scale: Scale = None,
    head_strength: Strength = None,
    nag: Nag = None,
    nag_scale: NagScale = None,
    seed: Annotated[int, typer.Option(help="Same seed, same video.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar instead of the summary.")] = False,
) -> None:
    """Turn PROMPT into an mp4, and write a JSON file with all that is needed to repeat it."""
    check_output(output, force)
    sizes = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
    options = pipeline_options(model, sizes, fps, guidance_scale)
    sparse = attention(method, density, dense_start, dense_end, dense_layers, impl)
    check_heads(heads, guidance_preset, perturbation_scale, head_strength)
    check_nag(nag, nag_scale)
    device, dtype = device_and_dtype(device, dtype)

    pipe, load_seconds = _timed(lambda: load_pipeline(model, device, dtype))
    summary = _enable(pipe, sparse)
    guidance = guide_with(pipe, heads, guidance_preset, perturbation_scale, head_strength)
    away = guide_away(pipe, nag, nag_scale)
    check_frames(pipe, options.get("num_frames"))
    generator = torch.Generator("cpu").manual_seed(seed)
    with user_errors(ValueError):
        result, seconds = _timed(
            lambda: pipe(prompt=prompt, negative_prompt=negative_prompt, generator=generator, **options)
        )
    about = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "model": model,
        "pipeline": type(pipe).__name__,
        "method": method,
        "seed": seed,
        **options,
        "fps": fps or default_fps(model),
        "device": device,
        "dtype": dtype,
        "attention": summary().to_dict() if sparse else {"density": 1.0, "versions": versions()},
        "guidance": guidance,
        "negative_guidance": away,
        "seconds": {"load": round(load_seconds, 3), "generate": round(seconds, 3)},
    }
    with user_errors(OSError):
        write_video(output, result.frames[0], about["fps"], about)
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    if sparse:
        typer.echo(str(summary()))
    typer.echo(f"{output}: {method}, {seconds:.1f} s; how to repeat it: {sidecar_path(output)}")


def _enable(pipe: Any, sparse: Attention | None) -> Callable[[], Summary]:
    if sparse:
        method, schedule, impl = sparse
        with user_errors(TypeError):
            enable(pipe, method, schedule=schedule, impl=impl)
    return lambda: make_summary(pipe)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start
