"""`diffattn recall`: how much of a model's attention a method keeps, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, device_and_dtype, load_pipeline
from ..analysis.recall import Recall, attention_recall
from ..methods import config
from . import settings
from .output import check_png

PROMPT = "a red circle moves right over a blue background"


def recall(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")] = PROMPT,
    method: Annotated[str, typer.Option(help="Attention method.")] = "auto",
    density: Annotated[float, typer.Option(help="Share of the products between visual tokens, 0 to 1.")] = 0.2,
    model: settings.Model = TINY,
    frames: settings.Frames = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of the run.")] = 10,
    step: Annotated[int, typer.Option(help="The step to look at, from 0.")] = 5,
    seed: settings.Seed = 0,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The png to draw into.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a model densely on PROMPT and print how much of its attention a method would keep in every layer."""
    if output is not None:
        check_png(output, force)
    if not 0 <= step < steps:
        raise CommandError(f"step must be from 0 to {steps - 1} in a run of {steps}, got {step}")
    with user_errors(ValueError):
        chosen = config(method, density=density)
    inputs = settings.pipeline_options(model, {"num_frames": frames, "num_inference_steps": steps}, None, None)
    pipe = load_pipeline(model, *device_and_dtype(device, dtype))
    check_frames(pipe, frames)
    found = _recalls(_run(pipe, inputs | {"prompt": prompt}, step, seed), chosen)
    if output is not None:
        from ..analysis.pictures import draw_recall

        with user_errors(ImportError):
            draw_recall(found, output, title=f"{method}, density {density:g}, step {step} of {steps}")
    if as_json:
        typer.echo(json.dumps([_row(part) for part in found], indent=2))
        return
    typer.echo("layer  density  exact   seen    error")
    for part in map(_row, found):
        typer.echo("{layer:<5}  {density:.3f}    {exact:.3f}   {seen:.3f}   {error:.3f}".format(**part))
    typer.echo(
        "exact: attention mass on keys seen one by one; seen: in means too; error: relative error of the output"
    )


def _run(pipe: Any, inputs: dict[str, Any], step: int, seed: int) -> list[Any]:
    from ..analysis.capture import capture

    noise = torch.Generator("cpu").manual_seed(seed)
    with user_errors(ValueError, TypeError), capture(pipe, keep=lambda layer, now: now == step) as calls:
        pipe(generator=noise, output_type="latent", **inputs)
    if not calls:
        raise CommandError(f"the pipeline made no self-attention call at step {step} that diffattn supports")
    return calls


def _recalls(calls: list[Any], chosen: Any) -> list[Recall]:
    """One for each layer, of its first call in the step (with guidance, that of the prompt)."""
    first = {call.layer: call for call in reversed(calls)}
    return [attention_recall(first[layer], chosen) for layer in sorted(first)]


def _row(part: Recall) -> dict[str, float]:
    shares = {name: round(float(getattr(part, name).mean()), 4) for name in ("exact", "seen", "error")}
    return {"layer": part.layer, "density": round(part.density, 4), **shares}
