"""`diffattn compare`: how far two videos are apart."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, default_fps, device_and_dtype, load_pipeline
from ..analysis.metrics import compare_videos
from ..analysis.trial import run_trial
from ..analysis.video import difference_strip, read_video, side_by_side
from . import settings
from .output import check_output, write_atomically, write_video

VIDEO, STRIP = "side_by_side.mp4", "difference.png"
WITHOUT_MODEL = ("a", "b", "output", "force", "as_json")


@dataclass(frozen=True)
class VideoPair:
    """A video, the reference it is measured against, and the facts about both for the sidecar."""

    names: tuple[str, str]
    video: np.ndarray
    reference: np.ndarray
    fps: float
    about: dict = field(default_factory=dict)


def compare(
    context: typer.Context,
    a: Annotated[Path | None, typer.Argument(help="A video file.")] = None,
    b: Annotated[Path | None, typer.Argument(help="The reference, of the same size and length.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Folder for {VIDEO}, its .json and {STRIP}.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Instead of files: run a method and dense from one seed.")] = None,
    model: settings.Model = TINY,
    method: Annotated[str, typer.Option(help="Attention method.")] = "auto",
    density: settings.Density = None,
    dense_start: settings.DenseStart = 0.2,
    dense_layers: settings.DenseLayers = 0,
    impl: settings.Impl = "auto",
    height: settings.Height = None,
    width: settings.Width = None,
    frames: settings.Frames = None,
    steps: settings.Steps = None,
    guidance_scale: settings.GuidanceScale = None,
    seed: settings.Seed = 0,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in the output folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the numbers of every frame.")] = False,
) -> None:
    """Print PSNR, SSIM and MS-SSIM of video A against B, or with --prompt of a method against dense attention."""
    _check_arguments(context, a, b, prompt)
    if output is not None:
        _check_folder(output, force)
    if prompt is None:
        pair = _read(a, b)
    else:
        sizes = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
        options = settings.pipeline_options(model, sizes, None, guidance_scale)
        sparse = settings.attention(method, density, dense_start, 0.0, dense_layers, impl)
        if sparse is None:
            raise CommandError("--method must name a sparse method, which is compared with dense")
        pair = _generate(prompt, model, sparse, options, seed, *device_and_dtype(device, dtype))
    with user_errors(ValueError, ImportError):
        comparison = compare_videos(pair.video, pair.reference)
    about = {"video": pair.names[0], "reference": pair.names[1], **pair.about, **comparison.to_dict()}
    if output is not None:
        with user_errors(OSError):
            about["files"] = _write(output, pair, about)
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    for name in pair.names:
        if name in pair.about:
            typer.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in pair.about[name].items()))
    typer.echo(f"{pair.names[0]} against {pair.names[1]}: {comparison}")
    for file in about.get("files", []):
        typer.echo(file)


def _check_arguments(context: typer.Context, a: Path | None, b: Path | None, prompt: str | None) -> None:
    if (prompt is None and b is None) or (prompt is not None and a is not None):
        raise CommandError("give two video files, or none and --prompt")
    if prompt is not None:
        return
    for name in context.params:
        if name not in WITHOUT_MODEL and context.get_parameter_source(name).name != "DEFAULT":
            raise CommandError(f"--{name.replace('_', '-')} goes with --prompt, not with two files")


def _read(a: Path, b: Path) -> VideoPair:
    with user_errors(OSError, ValueError):
        (video, fps), (reference, _) = read_video(a), read_video(b)
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    return VideoPair(names, video, reference, fps)


def _generate(
    prompt: str, model: str, sparse: settings.Attention, options: dict, seed: int, device: str, dtype: str
) -> VideoPair:
    pipe = load_pipeline(model, device, dtype)
    check_frames(pipe, options.get("num_frames"))
    config, schedule, impl = sparse
    inputs = {"prompt": prompt, **options}
    with user_errors(ValueError, TypeError):
        reference = run_trial(pipe, inputs, seed=seed)
        video = run_trial(pipe, inputs, config, schedule=schedule, impl=impl, seed=seed)
    about = {"model": model, "seed": seed, **inputs, config.method: video.to_dict(), "dense": reference.to_dict()}
    return VideoPair((config.method, "dense"), video.frames, reference.frames, default_fps(model), about)


def _check_folder(folder: Path, force: bool) -> None:
    if not folder.is_dir():
        if folder.exists() or not folder.absolute().parent.is_dir():
            raise CommandError(f"the output must be a folder, or a new one in a folder that exists: {folder}")
        return
    check_output(folder / VIDEO, force)
    if (folder / STRIP).exists() and not force:
        raise CommandError(f"{folder / STRIP} exists; --force overwrites it")


def _write(folder: Path, pair: VideoPair, about: dict) -> list[str]:
    folder.mkdir(exist_ok=True)
    strip = difference_strip(pair.video, pair.reference, pair.names)
    write_video(folder / VIDEO, side_by_side(dict(zip(pair.names, (pair.video, pair.reference)))), pair.fps, about)
    write_atomically(folder / STRIP, lambda partial: strip.save(partial))
    return [str(folder / name) for name in (VIDEO, STRIP)]
