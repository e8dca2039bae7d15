"""`diffattn generate`: a prompt becomes a video file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .errors import CommandError, user_errors
from .output import check_output, sidecar_path, write_video

TINY_DEFAULTS = {"height": 128, "width": 128, "num_frames": 33, "num_inference_steps": 20, "guidance_scale": 3.0}
TINY_FPS = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The mp4 to write; a .json goes beside it.")],
    negative_prompt: Annotated[str, typer.Option(help="What it should not show.")] = "",
    model: Annotated[str, typer.Option(help="Hub id or pipeline folder; 'tiny' is the embedded model.")] = "tiny",
    method: Annotated[str, typer.Option(help="Attention method, or 'dense'.")] = "radial",
    density: Annotated[float | None, typer.Option(help="Share of attention to compute, 0 to 1.")] = None,
    dense_start: Annotated[float, typer.Option(help="Share of first steps that stay dense, from 1 up a count.")] = 0.2,
    dense_end: Annotated[float, typer.Option(help="Share of last steps that stay dense, from 1 up a count.")] = 0.0,
    dense_layers: Annotated[int, typer.Option(help="First layers that stay dense.")] = 1,
    impl: Annotated[str, typer.Option(help="auto, torch, triton or reference.")] = "auto",
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own default if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of the video.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second; 8 for the embedded model, else 16.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 1 is off.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same video.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar instead of the summary.")] = False,
) -> None:
    """Turn PROMPT into an mp4 and a JSON file with all that is needed to make it again."""
    import diffattn

    check_output(output, force)
    shared = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
    for name, value in {**shared, "fps": fps}.items():
        if value is not None and value < 1:
            raise CommandError(f"{name.replace('num_', '').replace('inference_', '')} must be at least 1, got {value}")
    with user_errors(ValueError):
        config = _config(method, density)
        schedule = diffattn.Schedule(_count_or_share(dense_start), _count_or_share(dense_end), dense_layers)
        diffattn.kernels.attend.resolve_impl(impl, torch.device("cpu"))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")

    pipe, load_seconds = _timed(lambda: _load(model, device, dtype))
    if config is not None:
        with user_errors(TypeError):
            diffattn.enable(pipe, config, schedule=schedule, impl=impl)
    defaults = TINY_DEFAULTS if model == "tiny" else {}
    options = {**defaults, **{name: value for name, value in shared.items() if value is not None}}
    if guidance_scale is not None:
        options["guidance_scale"] = guidance_scale
    _check_frames(pipe, options.get("num_frames"))
    generator = torch.Generator("cpu").manual_seed(seed)
    with user_errors(ValueError):
        result, seconds = _timed(
            lambda: pipe(prompt=prompt, negative_prompt=negative_prompt, generator=generator, **options)
        )
    fps = fps or (TINY_FPS if model == "tiny" else 16)
    about = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "model": model,
        "pipeline": type(pipe).__name__,
        "method": method,
        "seed": seed,
        **options,
        "fps": fps,
        "device": device,
        "dtype": dtype,
        "attention": diffattn.summary(pipe).to_dict() if config is not None else {"method": "dense", "density": 1.0},
        "seconds": {"load": round(load_seconds, 3), "generate": round(seconds, 3)},
    }
    with user_errors(OSError):
        write_video(output, result.frames[0], fps, about)
    _report(about, output, seconds, diffattn.summary(pipe) if config is not None else None, as_json)


def _config(method: str, density: float | None) -> Any:
    import diffattn

    if method != "dense":
        return diffattn.config(method, **({} if density is None else {"density": density}))
    if density not in (None, 1.0):
        raise ValueError(f"method 'dense' has density 1, got {density}")
    return None


def _count_or_share(value: float) -> float | int:
    return int(value) if value >= 1 and value == int(value) else value


def _load(model: str, device: str, dtype: str) -> Any:
    from diffusers import DiffusionPipeline

    import diffattn

    if dtype not in DTYPES:
        raise CommandError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = diffattn.tiny_wan() if model == "tiny" else model
    if Path(folder).is_dir() and not (Path(folder) / "model_index.json").is_file():
        raise CommandError(f"{folder} is no pipeline folder: it holds no model_index.json")
    with user_errors(OSError, ValueError, RuntimeError):
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype]).to(device)


def _check_frames(pipe: Any, frames: int | None) -> None:
    stride = getattr(pipe, "vae_scale_factor_temporal", 1)
    if frames is not None and (frames - 1) % stride:
        below = frames - (frames - 1) % stride
        raise CommandError(f"frames must be 1 more than a multiple of {stride}: {below} or {below + stride}, not {frames}")


def _timed(run: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _report(about: dict, output: Path, seconds: float, summary: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    if summary is not None:
        typer.echo(str(summary))
    typer.echo(f"{output}: {about['method']}, {seconds:.1f} s; how to make it again: {sidecar_path(output)}")
